//! The findings of `agent doctor` on hosts that lack something.

use super::*;

#[test]
fn each_way_to_be_without_the_memory_controller_has_its_own_way_out() {
    let kernel = |memory: &str| {
        format!("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\n{memory}")
    };
    let all = [
        contained(None, None, &kernel("memory\t4\t14\t1\n")),
        contained(
            Some("cpu memory\n"),
            Some("cpu memory\n"),
            &kernel("memory\t0\t14\t1\n"),
        ),
        contained(
            Some("cpu memory\n"),
            Some("cpu\n"),
            &kernel("memory\t0\t14\t1\n"),
        ),
        contained(Some("cpu\n"), None, &kernel("memory\t4\t14\t1\n")),
        contained(Some("cpu\n"), None, &kernel("memory\t0\t14\t0\n")),
        contained(Some("cpu\n"), None, &kernel("memory\t0\t14\t1\n")),
    ];
    insta::assert_snapshot!(doctor::table(&all), @r"
    warn  containment     subreaper: no control groups of version 2
                          -> boot with systemd.unified_cgroup_hierarchy=1; until then jobs are held by their process tree alone
    ok    containment     cgroup2, with the memory controller
    warn  containment     cgroup2 without the memory controller: results have no peaks of whole jobs, and no `oom`: it is not handed down to mezcal-jobs.slice
                          -> `systemctl show -p MemoryAccounting mezcal-jobs.slice` should say yes: `systemctl edit mezcal-jobs.slice`, or DefaultMemoryAccounting= in system.conf
    warn  containment     cgroup2 without the memory controller: results have no peaks of whole jobs, and no `oom`: control groups of version 1 have it
                          -> boot with systemd.unified_cgroup_hierarchy=1
    warn  containment     cgroup2 without the memory controller: results have no peaks of whole jobs, and no `oom`: the kernel was started without it
                          -> boot with cgroup_enable=memory, and without cgroup_disable=memory
    warn  containment     cgroup2 without the memory controller: results have no peaks of whole jobs, and no `oom`: this system was not given it
                          -> in a container: have the controller delegated where the container is started; else boot with cgroup_enable=memory
    ");
}

#[test]
fn what_runs_from_a_replaced_program_is_told_from_commands_in_the_same_file() {
    let part = |exe: &str, words: &str| replaced(exe, words.replace(' ', "\0").as_bytes());
    let (one, old) = (
        "/usr/bin/mezcal (deleted)",
        "/usr/bin/mezcal-agent (deleted)",
    );
    let agent = "/usr/bin/mezcal-agent run --config x";
    let installed = "mezcal-keeper keeper --host localhost --agent 7 --socket s";
    for exe in [one, old] {
        assert_eq!(part(exe, agent), Some(Part::Agent));
        assert_eq!(part(exe, installed), Some(Part::Engines));
    }
    assert_eq!(part(one, "mezcal agent run"), Some(Part::Agent));
    for other in [
        "/usr/bin/coordinator serve",
        "mezcal run jobs",
        "coordinator run jobs",
        "mezcal-keeper keeper --host localhost",
    ] {
        assert_eq!(part(one, other), None, "{other}");
    }
    assert_eq!(part("/usr/bin/mezcal", agent), None);
    assert_eq!(part("/usr/bin/other (deleted)", agent), None);
}

#[test]
fn whoever_is_older_is_named() {
    let users = ["okazaki".to_owned(), "sato".to_owned()];
    let all = [
        (false, &users[..0]),
        (true, &users[..0]),
        (false, &users[..1]),
        (true, &users[..]),
    ];
    insta::assert_snapshot!(doctor::table(&all.map(|(agent, users)| older("1.2", agent, users))), @r"
    ok    version         1.2
    warn  version         1.2 is installed, and an older agent runs
                          -> systemctl restart mezcal-agent, which disturbs no job
    warn  version         1.2 is installed, and older engines run, of okazaki
                          -> systemctl restart mezcal-engines@okazaki, which ends the jobs there: they run again elsewhere
    warn  version         1.2 is installed, and an older agent runs, and older engines of okazaki, sato
                          -> systemctl restart mezcal-agent, which disturbs no job; systemctl restart mezcal-engines@okazaki mezcal-engines@sato, which ends the jobs there: they run again elsewhere
    ");
}
