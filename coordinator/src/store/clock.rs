//! How long ago something was, across lives of a coordinator.
//!
//! A wall clock may be set. Until the host boots again, only its boot clock tells how much time has
//! passed. Across boots there is only the wall clock: it is believed, but the time passed is
//! never less than zero.

use mezcal_common::model::clock::{BootInstant, WallTime};
use mezcal_common::system::proc::boot_id;
use std::sync::LazyLock;
use std::time::Duration;

/// A boot without a known id: /proc did not say.
const UNKNOWN: [u8; 16] = [0; 16];
/// The id stays the same for as long as the process lives.
static BOOT: LazyLock<[u8; 16]> = LazyLock::new(boot_id);

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// The wall clock.
    pub(super) wall: WallTime,
    /// The boot of the host and the time on its clock; none in records of an earlier version.
    pub(super) up: Option<([u8; 16], BootInstant)>,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            wall: WallTime::now(),
            up: Some((*BOOT, BootInstant::now())),
        }
    }

    /// From the stored form: the wall clock, the boot, and microseconds of its clock.
    pub(super) fn stored(wall: i64, boot: Option<&[u8]>, up: Option<i64>) -> Self {
        let boot = boot.and_then(|boot| boot.try_into().ok());
        let up = up
            .and_then(|up| u64::try_from(up).ok())
            .map(|up| BootInstant(Duration::from_micros(up)));
        Self {
            wall: WallTime(wall),
            up: boot.zip(up),
        }
    }

    /// The parts that are stored beside the wall clock: the boot, and microseconds of its clock.
    pub(super) fn columns(&self) -> (Option<[u8; 16]>, Option<i64>) {
        let micros = |up: BootInstant| i64::try_from(up.0.as_micros()).unwrap_or(i64::MAX);
        self.up
            .map_or((None, None), |(boot, up)| (Some(boot), Some(micros(up))))
    }

    /// How long before `now` it was.
    pub(super) fn age(&self, now: &Self) -> Duration {
        match (self.up, now.up) {
            (Some((then, up)), Some((boot, now))) if then == boot && boot != UNKNOWN => {
                now.since(up)
            }
            _ => Duration::try_from_secs_f64(now.wall.seconds_since(self.wall)).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(wall: i64, boot: u8, up: u64) -> Moment {
        Moment {
            wall: WallTime::of_seconds(wall),
            up: Some(([boot; 16], BootInstant(Duration::from_secs(up)))),
        }
    }

    #[test]
    fn on_the_same_boot_its_clock_decides_and_across_boots_the_wall_clock_does() {
        let seconds = Duration::from_secs;
        let then = moment(1000, 1, 50);
        assert_eq!(
            then.age(&moment(8200, 1, 60)),
            seconds(10),
            "the wall clock was set two hours ahead"
        );
        assert_eq!(then.age(&moment(0, 1, 60)), seconds(10), "and back");
        assert_eq!(then.age(&moment(1500, 2, 7)), seconds(500));
        assert_eq!(
            then.age(&moment(900, 2, 7)),
            seconds(0),
            "never less than none"
        );
        assert_eq!(
            moment(1000, 0, 50).age(&moment(1500, 0, 60)),
            seconds(500),
            "without a boot's id it may be any boot"
        );
        assert_eq!(
            Moment { up: None, ..then }.age(&moment(1500, 1, 60)),
            seconds(500),
            "written by an earlier version"
        );
        let (boot, up) = then.columns();
        assert_eq!(
            Moment::stored(then.wall.0, boot.as_ref().map(|boot| &boot[..]), up),
            then
        );
        assert_eq!(Moment::stored(1, Some(&[1, 2]), Some(-7)).up, None);
    }
}
