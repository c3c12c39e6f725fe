//! Many at once.

use testkit::{Running, Sandbox};

use crate::{
    random::Random,
    world::{World, sound},
};

/// How many at once.
const CROWD: usize = 20;

#[test]
fn twenty_commands_at_once_on_one_workspace_leave_it_whole() {
    let mut random = Random::seeded("crowd");
    let mut world = World::new();
    let acts: [&[&str]; 12] = [
        &["create", "one", Sandbox::BUSYBOX, "--profile", "tiny"],
        &["start", "one"],
        &["exec", "one", "--", "true"],
        &["status", "one"],
        &["events", "one"],
        &["list"],
        &["pause", "one"],
        &["resume", "one"],
        &["halt", "one"],
        &["clone", "one", "two"],
        &["delete", "--force", "two"],
        &["gc"],
    ];
    world
        .ask(["create", "one", Sandbox::BUSYBOX, "--profile", "tiny"])
        .success();
    for round in 0..3 {
        let crowd: Vec<Running> = (0..CROWD)
            .map(|_| {
                world
                    .sandbox
                    .microagent([])
                    .json()
                    .words(random.pick::<&[&str]>(&acts))
                    .start()
            })
            .collect();
        for running in crowd {
            sound(&running.finish());
        }
        world.forget("two");
        world.check(&format!("round {round}"));
    }
    // After all that it does what a new one does.
    world.ask(["stop", "one"]);
    world.ask(["start", "one"]).success();
    let finished = world.ask(["exec", "one", "--", "echo", "alive"]).success();
    assert_eq!(finished.parsed()["stdout"]["data"], "alive\n");
    world.end();
}

#[test]
fn twenty_workspaces_at_once_live_and_end() {
    let mut world = World::new();
    let names: Vec<String> = (0..CROWD).map(|at| format!("crowd-{at}")).collect();
    let each = |world: &World, words: &dyn Fn(&str) -> Vec<String>| {
        let crowd: Vec<Running> = names
            .iter()
            .map(|name| {
                world
                    .sandbox
                    .microagent([])
                    .json()
                    .words(&words(name))
                    .start()
            })
            .collect();
        for running in crowd {
            running.finish().success();
        }
    };
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    each(&world, &|name| {
        words(&["create", name, Sandbox::BUSYBOX, "--profile", "tiny"])
    });
    world.check("creating");
    // Booting all of them takes their host as long as one after the other; no boot may give up.
    each(&world, &|name| words(&["start", name]));
    each(&world, &|name| {
        words(&[
            "exec",
            name,
            "--",
            "sh",
            "-c",
            "echo $HOSTNAME >/root/name; sync",
        ])
    });
    each(&world, &|name| words(&["stop", name]));
    world.check("stopping");
    for name in &names {
        let source = format!("{name}:/root/name");
        let copied = world
            .sandbox
            .microagent(["cp", &source, "-"])
            .run()
            .success();
        assert!(copied.out().contains(name.as_str()), "{copied}");
    }
    each(&world, &|name| words(&["delete", name]));
    world.end();
}
