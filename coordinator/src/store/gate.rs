//! For tests: reads of a store that wait until a test lets them through.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The gates that are shut.
static GATES: Mutex<Vec<Arc<Gate>>> = Mutex::new(Vec::new());

/// A gate before the reads of one store.
pub(crate) struct Gate {
    path: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    open: bool,
    waiting: usize,
}

impl Gate {
    /// From now on, reads of the store in this directory wait.
    pub(crate) fn shut(directory: &Path) -> Arc<Self> {
        let gate = Arc::new(Self {
            path: directory.join("store.db"),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        gates().push(gate.clone());
        gate
    }

    /// Reads that wait go on, and later reads do not wait.
    pub(crate) fn open(&self) {
        self.state().open = true;
        self.changed.notify_all();
        gates().retain(|gate| gate.path != self.path);
    }

    /// Resolves when so many reads wait.
    pub(crate) async fn holds(self: &Arc<Self>, count: usize) {
        let gate = self.clone();
        let held = tokio::task::spawn_blocking(move || {
            let mut state = gate.state();
            while state.waiting < count {
                state = gate
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        });
        held.await.expect("it waits and does nothing else");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gates() -> MutexGuard<'static, Vec<Arc<Gate>>> {
    GATES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits if there is a gate before this store.
pub(super) fn pass(path: &Path) {
    let gate = gates().iter().find(|gate| gate.path == path).cloned();
    let Some(gate) = gate else { return };
    let mut state = gate.state();
    state.waiting += 1;
    gate.changed.notify_all();
    while !state.open {
        state = gate
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
    state.waiting -= 1;
}
