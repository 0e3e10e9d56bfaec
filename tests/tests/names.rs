//! The host that a name stands for, with real agents: certificates and admins decide, never an
//! agent's word.

use mezcal_tests::cluster::{Cluster, PATIENCE, results};
use mezcal_tests::lab::host_name;
use mezcal_tests::wait_for;
use std::process::Output;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exec(cluster: &Cluster, host: &str) -> Output {
    cluster.run(&[
        "exec",
        "-p",
        "mezcal",
        "--host-timeout",
        "2s",
        host,
        "--",
        "echo",
        "it ran",
    ])
}

#[test]
fn an_agent_on_a_machine_with_anothers_name_gets_nothing_that_is_meant_for_the_other() {
    let mut cluster = Cluster::new(2, 1);
    if !cluster.lab.is_real() {
        mezcal_tests::say_skipped("a machine with another's name: hosts share one");
        return cluster.finish();
    }
    // The machine is called mezcal01 and has the certificate of mezcal02; mezcal01 is away.
    let path = cluster.path("agent01.toml");
    let config = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(
        &path,
        config.replace(
            &format!("agents/{}", host_name(1)),
            &format!("agents/{}", host_name(2)),
        ),
    )
    .expect("written");
    cluster.start_coordinator();
    cluster.start_agent(1);
    cluster.wait_connected(1);
    for meant in ["mezcal01", &host_name(1)] {
        let out = exec(&cluster, meant);
        assert_eq!(
            (out.status.code(), text(&out.stdout)),
            (Some(1), String::new()),
            "{meant}"
        );
        assert!(
            text(&out.stderr).contains("no host of this name has ever connected"),
            "{}",
            text(&out.stderr)
        );
    }
    let job = |host: &str| format!("{}\n", serde_json::json!({"cmd": "true", "host": host}));
    let mut run = cluster.start_run(
        &(job("mezcal01") + &job("mezcal02")),
        &["--keep-order", "--host-timeout", "2s"],
    );
    let status = wait_for("the run ends", PATIENCE, || {
        run.try_wait().expect("our child")
    });
    assert_eq!(status.code(), Some(1));
    let outcomes: Vec<_> = results(&cluster.path("results.json"))
        .iter()
        .map(|line| line["result"]["outcome"].clone())
        .collect();
    assert_eq!(
        outcomes,
        ["no_host", "exited"],
        "a host serves under the names of its certificate"
    );
    // An admin may decide otherwise, and a reload applies it.
    let toml = cluster.path("coordinator.toml");
    let config = std::fs::read_to_string(&toml).expect("readable");
    std::fs::write(
        &toml,
        format!(
            "{config}[aliases]\n\"{}\" = [\"mezcal01\", \"gpu\"]\n",
            host_name(2)
        ),
    )
    .expect("written");
    cluster.reload_coordinator();
    for alias in ["gpu", "mezcal01"] {
        let out = exec(&cluster, alias);
        assert_eq!(
            (out.status.code(), text(&out.stdout)),
            (Some(0), format!("{alias}: it ran\n")),
            "{}",
            text(&out.stderr)
        );
    }
    std::fs::write(
        &toml,
        format!("{config}[aliases]\na = [\"gpu\"]\nb = [\"gpu\"]\n"),
    )
    .expect("written");
    cluster.reload_coordinator();
    assert!(
        cluster
            .log_text("coordinator")
            .contains("the alias gpu is given to a and to b")
    );
    cluster.finish_with(&["nothing is changed"]);
}
