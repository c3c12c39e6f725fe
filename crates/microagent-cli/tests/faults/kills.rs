//! SIGKILL to anything at any instant of any command.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use testkit::{Sandbox, Terminal};

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

/// What is under way meanwhile.
#[derive(Clone, Copy)]
struct Act {
    /// How often it comes, compared with others. What boots comes less often: it takes a hundred
    /// times as long.
    weight: usize,
    /// How long it usually takes.
    millis: u64,
    /// The command; words in capitals stand for what a round has chosen.
    words: &'static [&'static str],
    /// Whether somebody sits at a terminal.
    at_terminal: bool,
}

const fn act(weight: usize, millis: u64, words: &'static [&'static str]) -> Act {
    Act {
        weight,
        millis,
        words,
        at_terminal: false,
    }
}

const fn session(weight: usize, millis: u64, words: &'static [&'static str]) -> Act {
    Act {
        at_terminal: true,
        ..act(weight, millis, words)
    }
}

const TINY: &str = "tiny";
const BUSYBOX: &str = Sandbox::BUSYBOX;
const SETUP: &str = "echo z >>/root/file; sync; sleep 1";

/// Every command that has to do with a workspace.
const ACTS: &[Act] = &[
    act(4, 40, &["create", "NAME", BUSYBOX, "--profile", TINY]),
    act(
        1,
        40,
        &[
            "create",
            "NAME",
            BUSYBOX,
            "--profile",
            TINY,
            "--",
            "sleep",
            "2",
        ],
    ),
    act(
        1,
        4000,
        &[
            "create",
            "NAME",
            BUSYBOX,
            "--profile",
            TINY,
            "--setup",
            SETUP,
        ],
    ),
    act(3, 60, &["apply", "--file", "SPEC", "NAME"]),
    act(3, 3000, &["start", "NAME"]),
    act(
        1,
        60,
        &["exec", "NAME", "--", "sh", "-c", "echo x >/root/file; sync"],
    ),
    act(
        2,
        100,
        &["connect", "NAME", "--send", "echo y >>/root/file; sync"],
    ),
    session(1, 700, &["connect", "NAME"]),
    session(1, 700, &["exec", "-it", "NAME", "--", "sh"]),
    act(2, 300, &["cp", "FILE", "NAME:/root/file"]),
    act(1, 100, &["cp", "NAME:/root/file", "-"]),
    act(1, 60, &["artifacts", "list", "NAME"]),
    act(1, 100, &["artifacts", "get", "NAME", "-o", "INTO"]),
    act(1, 300, &["commit", "NAME", "fault:1"]),
    act(1, 1500, &["halt", "NAME"]),
    act(1, 1500, &["stop", "NAME"]),
    act(1, 200, &["kill", "NAME"]),
    act(1, 60, &["pause", "NAME"]),
    act(1, 60, &["resume", "NAME"]),
    act(1, 100, &["quarantine", "NAME"]),
    act(1, 60, &["clone", "NAME", "OTHER"]),
    act(2, 200, &["delete", "--force", "NAME"]),
    act(1, 40, &["delete", "NAME"]),
    act(1, 500, &["wait", "NAME", "--timeout", "1s"]),
    act(
        2,
        3000,
        &["supervise", "NAME", "--max-restarts", "1", "--grace", "1"],
    ),
    act(1, 30, &["status", "NAME"]),
    act(1, 30, &["stats", "NAME"]),
    act(1, 30, &["logs", "NAME"]),
    act(1, 30, &["events", "NAME"]),
    act(1, 30, &["result", "NAME"]),
    act(1, 30, &["network", "NAME"]),
    act(1, 30, &["metrics"]),
    act(1, 30, &["list"]),
    act(1, 30, &["gc"]),
    act(1, 30, &["df"]),
    act(1, 3000, &["run", "--profile", TINY, BUSYBOX, "true"]),
];

/// Commands that do nothing with a workspace; those of images have kills of their own, in
/// `microagent-image`.
const NO_WORKSPACE: &[&str] = &[
    "completions",
    "contract",
    "doctor",
    "help",
    "host",
    "images",
    "kernel",
    "login",
    "logout",
    "man",
    "perf",
    "profiles",
    "prune",
    "rootfs",
    "spec",
    "version",
    "whoami",
];

/// Other names of commands that are there.
const ALIASES: &[&str] = &["inspect", "ps", "rm"];

/// What the words in capitals stand for.
struct Round<'a> {
    name: &'a str,
    other: &'a str,
    file: &'a str,
    into: &'a str,
    spec: &'a str,
}

impl Round<'_> {
    fn words(&self, act: Act) -> Vec<String> {
        let word = |word: &&str| match *word {
            "NAME" => self.name.to_owned(),
            "OTHER" => self.other.to_owned(),
            "FILE" => self.file.to_owned(),
            "INTO" => self.into.to_owned(),
            "SPEC" => self.spec.to_owned(),
            word => word.replace("NAME:", &format!("{}:", self.name)),
        };
        act.words.iter().map(word).collect()
    }
}

/// Takes an act out of a pack that has each as often as it weighs, so that none is left out.
fn choose(random: &mut Random, pack: &mut Vec<Act>) -> Act {
    if pack.is_empty() {
        let all = ACTS.iter();
        pack.extend(all.flat_map(|act| std::iter::repeat_n(*act, act.weight)));
    }
    pack.swap_remove(random.below(pack.len()))
}

/// Two specs to go to and fro between; workspaces that they are applied to have something to
/// supervise, to publish and to hand out.
fn specs(directory: &Path) -> [String; 2] {
    [("on-failure", "127.0.0.1"), ("always", "127.0.0.2")].map(|(restart, host)| {
        let path = directory.join(format!("{restart}.yaml"));
        let text = format!(
            "image: {BUSYBOX}\nprofile: tiny\nrestart: {restart}\n\
             outputs: [{{name: file, path: /root/file}}]\n\
             network: {{forwards: [{{hostPort: 0, guestPort: 80, host: {host}}}]}}\n"
        );
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[test]
fn every_command_is_under_attack() {
    let world = World::new();
    let help = world.sandbox.microagent(["help"]).run().success().out();
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("Usage"))
        .take_while(|line| !line.starts_with("Options"))
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 30, "{help}");
    for command in commands {
        let attacked = ACTS.iter().any(|act| act.words[0] == command);
        let other = NO_WORKSPACE.contains(&command) || ALIASES.contains(&command);
        assert!(attacked != other, "{command} is in one of the lists above");
    }
}

#[test]
fn a_kill_at_any_instant_loses_nothing_and_leaves_nothing() {
    let kills = std::env::var("MICROAGENT_FAULT_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let mut random = Random::seeded("kills");
    let mut world = World::new();
    let host = tempfile::tempdir().unwrap();
    let [file, into] = ["file", "into"].map(|name| host.path().join(name));
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let specs = specs(host.path());
    let mut pack = Vec::new();
    let (mut done, mut prompts) = (0, 0);
    let begun = Instant::now();
    while done < kills {
        let name = *random.pick(&NAMES);
        let other = *random.pick(&NAMES);
        let act = choose(&mut random, &mut pack);
        let round = Round {
            name,
            other,
            file: file.to_str().unwrap(),
            into: into.to_str().unwrap(),
            spec: random.pick::<String>(&specs),
        };
        let words = round.words(act);
        let victim = match random.below(8) {
            0..5 => Victim::Client,
            5 => Victim::Supervisor,
            6 => Victim::Vmm,
            _ => Victim::Guest,
        };
        let which = random.below(64);
        let instant = random.instant(Duration::from_millis(act.millis));
        let what = format!(
            "kill {done}: {victim:?} {instant:?} into `{}`",
            words.join(" ")
        );

        if act.at_terminal {
            // Nobody sits long at what does not run. Both may be so already, or be impossible.
            world.ask(["create", name, BUSYBOX, "--profile", TINY]);
            world.ask(["start", name]);
        }
        let running = Running::start(&world, act, &words);
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
        let code = running.finish(act, victim, &what, &mut prompts);
        if act.words[0] == "start" && code == Some(0) {
            is_set_up(&world, name, &what);
        }
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
    println!(
        "{done} kills in {:.0?}, {prompts} of them at a shell's prompt",
        begun.elapsed()
    );
    world.end();
}

/// A command that runs.
enum Running {
    /// Nobody sits at it.
    Piped(testkit::Running),
    /// Somebody types into it.
    AtTerminal(Terminal),
}

impl Running {
    fn start(world: &World, act: Act, words: &[String]) -> Self {
        let command = world.sandbox.microagent([]).words(words);
        if !act.at_terminal {
            return Self::Piped(command.json().start());
        }
        let mut terminal = command.on_terminal(24, 80);
        terminal.type_text("echo t >>/root/file; sync; sleep 0.2\n");
        Self::AtTerminal(terminal)
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Piped(running) => running.pid(),
            Self::AtTerminal(terminal) => terminal.pid(),
        }
    }

    /// Waits for its end, after it was told to come to one if it has none of its own. Gives its exit
    /// code, unless it was killed.
    fn finish(self, act: Act, victim: Victim, what: &str, prompts: &mut usize) -> Option<i32> {
        match self {
            Self::Piped(running) => {
                if act.words[0] == "supervise" {
                    running.signal(Signal::TERM);
                }
                let finished = running.finish();
                sound(&finished);
                (!finished.was_signaled()).then(|| finished.code())
            }
            Self::AtTerminal(mut terminal) => {
                *prompts += usize::from(terminal.screen().contains("# "));
                // The shell's end, and the key that lets go of it where nothing else ends it.
                terminal.type_text("exit\n\x1d");
                let code = terminal.finish();
                let screen = terminal.screen();
                assert!(
                    code != Some(101) && !screen.contains("panicked"),
                    "{what}: {screen:?}"
                );
                // Who is killed cannot; everybody else gives the terminal back as it was.
                assert!(
                    matches!(victim, Victim::Client) || terminal.is_restored(),
                    "{what}: the terminal is left raw: {screen:?}"
                );
                code
            }
        }
    }
}

/// A workspace that was started has its setup behind it, whatever became of the first try.
fn is_set_up(world: &World, name: &str, what: &str) {
    let directory = world.sandbox.state().join("workspaces").join(name);
    let manifest = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
    let due = manifest.contains(SETUP);
    assert!(
        !due || directory.join("setup-done").exists(),
        "{what}: it was started and is not set up"
    );
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
