//! Runs the tests of a program that brings its own `main`, because it is also a program it tests
//! with. Understands as much of the ordinary runner's command line as is used, and closes as it does.

#![allow(clippy::print_stdout)] // It reports as the ordinary runner does.

use std::{thread, time::Instant};

/// A test and its name.
pub type Test = (&'static str, fn());

/// Runs those that the command line asks for, one after the other, and ends the process.
pub fn run(tests: &[Test]) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = Wanted::read(&arguments);
    if wanted.list {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        std::process::exit(0);
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| wanted.has(name)) {
        let started = Instant::now();
        // A thread of its name, as the ordinary runner gives it.
        let running = thread::Builder::new().name((*name).to_owned()).spawn(*test);
        let (verdict, count) = match running.map(thread::JoinHandle::join) {
            Ok(Ok(())) => ("ok", &mut passed),
            Ok(Err(_)) | Err(_) => ("FAILED", &mut failed),
        };
        *count += 1;
        println!(
            "test {name} ... {verdict} ({} ms)",
            started.elapsed().as_millis()
        );
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out",
        tests.len() - passed - failed
    );
    std::process::exit(i32::from(failed > 0));
}

#[derive(Debug, Default, PartialEq)]
struct Wanted {
    list: bool,
    exact: bool,
    names: Vec<String>,
    skip: Vec<String>,
}

impl Wanted {
    fn read(arguments: &[String]) -> Self {
        let mut wanted = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--list" => wanted.list = true,
                "--exact" => wanted.exact = true,
                "--skip" => wanted.skip.extend(rest.next().cloned()),
                // Their values are no names.
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => {
                    rest.next();
                }
                option if option.starts_with('-') => {}
                name => wanted.names.push(name.to_owned()),
            }
        }
        wanted
    }

    fn has(&self, name: &str) -> bool {
        let fits = |pattern: &String| {
            if self.exact {
                name == pattern
            } else {
                name.contains(pattern.as_str())
            }
        };
        (self.names.is_empty() || self.names.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    fn wanted(line: &str) -> Wanted {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Wanted::read(&words)
    }

    #[test]
    fn the_value_of_an_option_chooses_no_tests() {
        let all = wanted("--test-threads 2 --nocapture");
        assert_eq!(all, Wanted::default());
        assert!(all.has("anything"));
    }

    #[test]
    fn names_choose_and_leave_out() {
        let some = wanted("boot halt --skip twice");
        assert!(some.has("it_boots") && some.has("halt") && !some.has("kill"));
        assert!(!some.has("boots_twice"));
        assert!(!wanted("--exact boot").has("boots"));
    }
}
