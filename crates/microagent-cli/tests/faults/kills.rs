//! SIGKILL to anything at any instant of any command.

use std::time::{Duration, Instant};

use testkit::Sandbox;

use crate::{
    random::Random,
    world::{World, kill, sound},
};

/// How many kills a run has, unless `MICROAGENT_FAULT_KILLS` says otherwise.
const KILLS: usize = 200;

const NAMES: [&str; 3] = ["fa", "fb", "fc"];

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Client,
    Supervisor,
    Vmm,
    /// The guest's kernel, and the agent with it: nothing else can end PID 1.
    Guest,
}

/// What is under way meanwhile, and how long it usually takes.
struct Act {
    words: Vec<String>,
    window: Duration,
}

fn act(words: &[&str], millis: u64) -> Act {
    Act {
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        window: Duration::from_millis(millis),
    }
}

/// A command on `name`. Those that boot are rarer, as they take a hundred times as long.
fn choose(random: &mut Random, name: &str, other: &str, host_file: &str) -> Act {
    let at_root = format!("{name}:/root/file");
    match random.below(26) {
        0..4 => act(&["create", name, Sandbox::BUSYBOX, "--profile", "tiny"], 40),
        4 => act(
            &[
                "create",
                name,
                Sandbox::BUSYBOX,
                "--profile",
                "tiny",
                "--",
                "sleep",
                "2",
            ],
            40,
        ),
        5..8 => act(&["start", name], 3000),
        8 => act(
            &["exec", name, "--", "sh", "-c", "echo x >/root/file; sync"],
            60,
        ),
        9 | 10 => act(&["cp", host_file, &at_root], 300),
        11 => act(&["cp", &at_root, "-"], 100),
        12 => act(&["halt", name], 1500),
        13 => act(&["stop", name], 1500),
        14 => act(&["kill", name], 200),
        15 => act(&["pause", name], 60),
        16 => act(&["resume", name], 60),
        17 => act(&["quarantine", name], 100),
        18 => act(&["clone", name, other], 60),
        19 | 20 => act(&["delete", "--force", name], 200),
        21 => act(&["delete", name], 40),
        22 => act(&["status", name], 30),
        23 => act(&["gc"], 30),
        24 => act(&["list"], 30),
        _ => act(
            &["run", "--profile", "tiny", Sandbox::BUSYBOX, "true"],
            3000,
        ),
    }
}

#[test]
fn a_kill_at_any_instant_loses_nothing_and_leaves_nothing() {
    let kills = std::env::var("MICROAGENT_FAULT_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let mut random = Random::seeded("kills");
    let mut world = World::new();
    let host = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(host.path(), vec![7; 300_000]).unwrap();
    let host_file = host.path().to_str().unwrap().to_owned();
    let mut done = 0;
    let begun = Instant::now();
    while done < kills {
        let name = *random.pick(&NAMES);
        let other = *random.pick(&NAMES);
        let act = choose(&mut random, name, other, &host_file);
        let victim = match random.below(8) {
            0..5 => Victim::Client,
            5 => Victim::Supervisor,
            6 => Victim::Vmm,
            _ => Victim::Guest,
        };
        let which = random.below(64);
        let instant = random.instant(act.window);
        let what = format!(
            "kill {done}: {victim:?} {instant:?} into `{}`",
            act.words.join(" ")
        );

        let running = world
            .sandbox
            .microagent([])
            .json()
            .words(&act.words)
            .start();
        std::thread::sleep(instant); // The random instant itself.
        let killed = match victim {
            Victim::Client => {
                kill(running.pid());
                true
            }
            Victim::Supervisor => hit(&world, "microagent-supervisor", which),
            Victim::Vmm => hit(&world, "qemu-system", which),
            Victim::Guest => crash_guest(&world, name),
        };
        let finished = running.finish();
        sound(&finished);
        done += usize::from(killed);
        if act.words[0] == "delete" {
            // It may have got as far as the end.
            world.forget(name);
        }
        if act.words[0] == "create" || act.words[0] == "clone" {
            // A new one of the same name begins to count anew.
            let made = if act.words[0] == "create" {
                name
            } else {
                other
            };
            world.forget(made);
        }
        world.check(&what);
        if random.below(12) == 0 {
            let deleted = world.ask(["delete", "--force", name]);
            assert_eq!(deleted.code(), 0, "{what}, then delete: {deleted}");
            world.forget(name);
            world.check(&format!("{what}, then delete"));
        }
    }
    println!("{done} kills in {:.0?}", begun.elapsed());
    world.end();
}

fn hit(world: &World, program: &str, at: usize) -> bool {
    match world.a_process(program, at) {
        Some(pid) => {
            kill(pid);
            true
        }
        None => false,
    }
}

/// Crashes the kernel of a workspace that runs.
fn crash_guest(world: &World, name: &str) -> bool {
    let crash = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger";
    let finished = world
        .sandbox
        .microagent(["exec", name, "--", "sh", "-c", crash])
        .run();
    sound(&finished);
    // Nobody is left to say how the command ended.
    finished.code() == 125
}
