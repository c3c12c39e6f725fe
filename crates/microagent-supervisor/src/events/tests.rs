//! A history on a real file, across boots, crashes and its own bound.

use std::time::Duration;

use microagent_protocol::FrameReader;
use proptest::prelude::*;

use super::*;

fn follow(journal: &Journal, crew: &Crew) -> FrameReader<UnixStream> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    journal.follow(&ours, crew).unwrap();
    FrameReader::new(theirs)
}

fn next(reader: &mut FrameReader<UnixStream>) -> Option<Event> {
    reader.read().unwrap().map(|frame| frame.json().unwrap())
}

#[test]
fn numbers_go_on_across_boots_and_a_torn_line_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let (journal, state) = Journal::open(directory.path()).unwrap();
    assert_eq!((journal.sequence(), state), (0, State::Prepared));
    journal.record(State::Starting, EventKind::Paused);
    journal.record(State::Running, EventKind::Resumed);
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=30 {
        let mut torn = whole.clone();
        torn.extend_from_slice(&whole[..cut]);
        std::fs::write(&path, &torn).unwrap();
        let (journal, state) = Journal::open(directory.path()).unwrap();
        assert_eq!((journal.sequence(), state), (2, State::Running));
        journal.record(State::Paused, EventKind::Paused);
        let text = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<Event>(line).unwrap().sequence)
            .collect();
        assert_eq!(numbers, [1, 2, 3]);
    }
}

#[test]
fn a_follower_gets_this_boots_past_first_and_then_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let crew = Crew::default();
    let (journal, _) = Journal::open(directory.path()).unwrap();
    journal.record(State::Starting, EventKind::Paused);
    drop(journal);
    let (journal, _) = Journal::open(directory.path()).unwrap();
    journal.record(State::Running, EventKind::Resumed);
    let mut reader = follow(&journal, &crew);
    journal.record(State::Paused, EventKind::Paused);
    assert_eq!(next(&mut reader).unwrap().sequence, 2);
    assert_eq!(next(&mut reader).unwrap().sequence, 3);
    journal.close();
    assert!(next(&mut reader).is_none());
    let mut late = follow(&journal, &crew);
    assert_eq!(next(&mut late).unwrap().sequence, 2);
    assert_eq!(next(&mut late).unwrap().sequence, 3);
    assert!(next(&mut late).is_none());
    assert!(crew.wait_idle(std::time::Duration::from_secs(5)));
}

#[test]
fn a_slow_follower_is_dropped_and_blocks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let crew = Crew::default();
    let (journal, _) = Journal::open(directory.path()).unwrap();
    let mut slow = follow(&journal, &crew);
    let reason = "x".repeat(64 * 1024);
    for _ in 0..QUEUE + 64 {
        let reason = reason.clone();
        journal.record(State::Starting, EventKind::BootRetried { reason });
    }
    assert!(lock(&journal.shared).followers.is_empty());
    let mut seen = 0;
    while let Ok(Some(_)) = slow.read() {
        seen += 1;
    }
    assert!(seen < QUEUE + 64, "{seen} events were kept for it");
}

const SMALL: Bound = Bound {
    longest: 3000,
    newest: 1200,
    oldest: 400,
};

/// An event of about so many bytes more than the least.
fn event(size: usize) -> EventKind {
    EventKind::BootRetried {
        reason: "x".repeat(size),
    }
}

/// The events in the file, which has nothing else in it.
fn recorded(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn bytes(event: &Event) -> u64 {
    serde_json::to_vec(event).unwrap().len() as u64 + 1
}

#[derive(Clone, Debug)]
enum Act {
    Record(usize),
    /// The supervisor is killed: in the middle of a line, and of a shorter history, so far into them.
    Killed(usize, usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0..200_usize).prop_map(Act::Record),
        1 => (0..90_usize, 0..2000_usize).prop_map(|(line, new)| Act::Killed(line, new)),
    ]
}

/// What must be in a history after `all` these events, of which those from `boot` on are of this boot.
fn check(path: &Path, all: &[Event], boot: usize) {
    let kept = recorded(path);
    let length: u64 = kept.iter().map(bytes).sum();
    assert!(length <= SMALL.longest, "{length} bytes");
    let mut last = 0;
    for event in &kept {
        assert!(event.sequence > last, "in order, each once");
        last = event.sequence;
        let at = usize::try_from(event.sequence).unwrap() - 1;
        assert_eq!(event, &all[at], "as it was");
    }
    let is_kept = |event: &Event| kept.iter().any(|it| it.sequence == event.sequence);
    let mut behind = 0;
    for event in all.iter().rev() {
        behind += bytes(event);
        assert!(behind > SMALL.newest || is_kept(event), "{event:?} is new");
    }
    for first in [all.first(), all.get(boot)].into_iter().flatten() {
        assert!(is_kept(first), "{first:?} is a beginning");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_history_is_bounded_and_loses_only_its_middle(acts in prop::collection::vec(act(), 1..120)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(HISTORY);
        let temporary = path.with_added_extension("tmp");
        let open = || Journal::open_bounded(directory.path(), SMALL).unwrap().0;
        let (mut journal, mut all, mut boot) = (open(), Vec::new(), 0);
        for act in acts {
            match act {
                Act::Record(size) => {
                    journal.record(State::Running, event(size));
                    let kept = recorded(&path);
                    all.push(kept.last().unwrap().clone());
                    prop_assert_eq!(journal.sequence(), all.len() as u64);
                }
                Act::Killed(line, new) => {
                    drop(journal);
                    let whole = std::fs::read(&path).unwrap();
                    let torn = &whole[..line.min(whole.len().saturating_sub(1))];
                    let torn = torn.split(|byte| *byte == b'\n').next().unwrap();
                    std::fs::write(&path, [&whole[..], torn].concat()).unwrap();
                    std::fs::write(&temporary, &whole[..new.min(whole.len())]).unwrap();
                    boot = all.len();
                    journal = open();
                    prop_assert!(!temporary.exists());
                    prop_assert_eq!(journal.sequence(), all.len() as u64);
                }
            }
            check(&path, &all, boot);
        }
        // Who comes late is told what there is of this boot.
        journal.close();
        let crew = Crew::default();
        let mut reader = follow(&journal, &crew);
        let told: Vec<_> = std::iter::from_fn(|| next(&mut reader)).collect();
        let mut kept = recorded(&path);
        kept.retain(|event| event.sequence > boot as u64);
        prop_assert_eq!(told, kept);
        prop_assert!(crew.wait_idle(Duration::from_secs(5)));
    }
}

#[test]
fn a_follower_misses_nothing_when_the_history_is_made_shorter() {
    let directory = tempfile::tempdir().unwrap();
    let crew = Crew::default();
    let (journal, _) = Journal::open_bounded(directory.path(), SMALL).unwrap();
    journal.record(State::Starting, event(100));
    let mut reader = follow(&journal, &crew);
    for number in 2..200 {
        journal.record(State::Running, event(100));
        assert_eq!(next(&mut reader).unwrap().sequence, number - 1);
    }
    journal.close();
    assert_eq!(next(&mut reader).unwrap().sequence, 199);
    assert!(next(&mut reader).is_none());
    assert!(crew.wait_idle(Duration::from_secs(5)));
    assert!(recorded(&directory.path().join(HISTORY)).len() < 30);
}

#[test]
fn what_cannot_be_made_shorter_is_kept_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(HISTORY);
    let in_the_way = path.with_added_extension("tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    let (journal, _) = Journal::open_bounded(directory.path(), SMALL).unwrap();
    for _ in 0..100 {
        journal.record(State::Running, event(100));
    }
    assert_eq!(recorded(&path).len(), 100);
    std::fs::remove_dir(&in_the_way).unwrap();
    for _ in 0..10 {
        journal.record(State::Running, event(100));
    }
    let kept = recorded(&path);
    assert!(kept.len() < 30 && kept.last().unwrap().sequence == 110);
    // A line that is longer than what is kept stays, too: it is the last word.
    journal.record(State::Failed, event(5000));
    assert_eq!(recorded(&path).last().unwrap().state, State::Failed);
    journal.record(State::Stopped, event(10));
    drop(journal);
    let (journal, state) = Journal::open_bounded(directory.path(), SMALL).unwrap();
    assert_eq!((journal.sequence(), state), (112, State::Stopped));
}
