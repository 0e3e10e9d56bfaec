//! The dashboard as people see it: in a browser, wide and narrow, light and dark. Its pictures are
//! stored in `target/dashboard`.
//!
//! `MEZCAL_DASHBOARD_JOBS=N` runs more jobs behind it.

use mezcal_tests::browser::Browser;
use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::wait_for;
use serde_json::json;
use std::path::Path;

#[test]
fn the_dashboard_shows_hosts_batches_attempts_and_failures() {
    let jobs: usize = std::env::var("MEZCAL_DASHBOARD_JOBS")
        .ok()
        .map_or(2000, |n| n.parse().expect("a number"));
    let mut cluster = Cluster::new(12, 4);
    cluster.set_http("127.0.0.1:7480");
    let cluster = cluster.start();
    let Some(browser) = Browser::start(&cluster.lab, 0) else {
        return cluster.finish();
    };
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dashboard");
    browser.look(1600, 1500, false);
    browser.open(&format!("http://{}/", cluster.http_address()));
    browser.wait("document.querySelectorAll('.host.ready .engine').length === 48");
    // Some are short, some take a while, and some fail with a message.
    let many = "{\"argv\": [\"true\"]}\n".repeat(jobs - 100);
    let slow: String = (0..100)
        .map(|n| {
            let tail = if n % 10 == 0 {
                "; echo '<b>no such file</b>' >&2; exit 3"
            } else {
                ""
            };
            format!(
                "{}\n",
                json!({"cmd": format!("sleep 0.{n:02}{tail}"), "priority": 1})
            )
        })
        .collect();
    let mut run = cluster.start_run(
        &(slow + &many),
        &["--name", "a night", "--progress", "none"],
    );
    browser.wait("document.querySelectorAll('.engine.busy').length > 0");
    let patience = PATIENCE.max(std::time::Duration::from_millis(jobs as u64 * 10));
    wait_for("the run ends", patience, || {
        run.try_wait().expect("our child")
    });
    // A second batch, to have a choice.
    std::fs::write(cluster.path("second.json"), "{\"cmd\": \"true\"}\n").expect("written");
    assert!(
        cluster
            .run(&[
                "run",
                "-p",
                "mezcal",
                "second.json",
                "-q",
                "-o",
                "second.results"
            ])
            .status
            .success()
    );
    let ended = format!("view.ended === {} && view.failed === 10", jobs + 1);
    browser.wait(&ended);
    browser.wait(
        "document.querySelector('#rates polyline').getAttribute('points').split(' ').length > 2",
    );
    assert_eq!(
        browser.value("document.querySelectorAll('#batches tr').length"),
        2
    );
    assert_eq!(
        browser.value("document.querySelectorAll('.failure').length"),
        10
    );
    let words = browser.value("document.querySelector('.failure').textContent");
    let words = words.as_str().expect("text");
    assert!(
        words.contains("exited, status 3") && words.contains("<b>no such file</b>"),
        "as text, not as markup: {words}"
    );
    assert!(
        browser.value("drawn.length").as_u64() > Some(100),
        "attempts are in the timeline"
    );
    browser.screenshot(&pictures.join("wide-light.png"));
    browser.look(1600, 1500, true);
    browser.wait("matchMedia('(prefers-color-scheme: dark)').matches");
    browser.screenshot(&pictures.join("wide-dark.png"));
    browser.look(390, 1500, false);
    browser.wait("innerWidth === 390 && document.documentElement.scrollWidth <= innerWidth");
    browser.screenshot(&pictures.join("narrow.png"));
    // Filters.
    browser.value("(() => { const b = document.getElementById('batch'); b.value = view.batches.find(b => !b.name).id; b.dispatchEvent(new Event('change')); })()");
    browser.wait("document.querySelectorAll('#batches tr').length === 1 && document.querySelectorAll('.failure').length === 0 && drawn.length === 1");
    browser.value(
        "(() => { const h = document.getElementById('host'); h.value = 'mezcal03'; h.dispatchEvent(new Event('input')); })()",
    );
    browser.wait("document.querySelectorAll('.host').length === 1");
    // Requests from other sites get nothing, and the metrics for Prometheus are there.
    let metrics = browser
        .value("(() => { const r = new XMLHttpRequest(); r.open('GET', 'metrics', false); r.send(); return r.responseText; })()");
    let metrics = metrics.as_str().expect("text").to_owned();
    assert!(
        metrics.contains("mezcal_attempts_total{outcome=\"exited\"}")
            && metrics.ends_with("# EOF\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("mezcal_agents_connected 12\n"),
        "{metrics}"
    );
    let expires_in_time = |labels: &str| {
        let name = format!("mezcal_certificate_expiry_timestamp_seconds{{{labels}}} ");
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        let now = mezcal_common::model::clock::WallTime::now().0 / 1_000_000;
        value
            .parse::<i64>()
            .is_ok_and(|until| until > now && until < now + 11 * 365 * 86_400)
    };
    assert!(
        expires_in_time("role=\"coordinator\",host=\"\""),
        "{metrics}"
    );
    assert!(
        expires_in_time(&format!(
            "role=\"agent\",host=\"{}\"",
            mezcal_tests::lab::host_name(3)
        )),
        "{metrics}"
    );
    drop(browser);
    cluster.finish();
}
