use super::*;

pub(crate) fn run_args(words: &[&str]) -> Result<commands::run::RunArgs, clap::Error> {
    let cli = parse(["microagent", "run"].iter().chain(words))?;
    match cli.command {
        Command::Run(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_on_either_side() {
    for words in [
        ["microagent", "--json", "--quiet", "version"],
        ["microagent", "version", "--json", "-q"],
        ["microagent", "--json", "version", "--quiet"],
    ] {
        let cli = parse(words).unwrap();
        assert!(
            cli.globals.form() == Form::Json && cli.globals.quiet,
            "{words:?}"
        );
    }
}

#[test]
fn nothing_after_the_image_is_ours() {
    let args = run_args(&[
        "--memory",
        "1G",
        "debian:12",
        "ls",
        "--json",
        "-it",
        "--help",
        "--",
        "-v",
    ])
    .unwrap();
    assert_eq!(args.image(), "debian:12");
    assert_eq!(
        args.command(),
        ["ls", "--json", "-it", "--help", "--", "-v"]
    );
}

#[test]
fn two_hyphens_may_stand_before_the_command() {
    let args = run_args(&["debian:12", "--", "sh", "-c", "x -- y"]).unwrap();
    assert_eq!(args.command(), ["sh", "-c", "x -- y"]);
    let args = run_args(&["debian:12", "--", "-x", "--", "y"]).unwrap();
    assert_eq!(args.command(), ["-x", "--", "y"]);
    let args = run_args(&["--", "debian:12", "ls", "-l"]).unwrap();
    assert_eq!(
        (args.image(), args.command()),
        ("debian:12", &["ls".to_owned(), "-l".to_owned()][..])
    );
}

fn exec_args(words: &[&str]) -> Result<commands::exec::ExecArgs, clap::Error> {
    let cli = parse(["microagent", "exec"].iter().chain(words))?;
    match cli.command {
        Command::Exec(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_after_the_first_word_of_an_exec_is_ours() {
    for (words, command) in [
        (
            &["w", "--", "psql", "-h", "x", "--json"][..],
            &["psql", "-h", "x", "--json"][..],
        ),
        (
            &["w", "psql", "-h", "x", "-it"],
            &["psql", "-h", "x", "-it"],
        ),
        (
            &["-i", "w", "-e", "A=B", "sh", "-c", "x -- y"],
            &["sh", "-c", "x -- y"],
        ),
        (&["w", "--", "--odd", "--", "-x"], &["--odd", "--", "-x"]),
        (&["w", "-u", "7", "a", "--", "b"], &["a", "--", "b"]),
        (&["--", "w", "a", "-x"], &["a", "-x"]),
    ] {
        let args = exec_args(words).unwrap();
        assert_eq!(args.command(), command, "{words:?}");
    }
    for (words, named) in [
        (&["w", "--iteractive", "sh"][..], "--iteractive"),
        (&["w", "-x", "sh"], "-x"),
        (&["w"], "COMMAND"),
        (&[], "WORKSPACE"),
        (&["w", "--timeout", "soon", "sh"], "soon"),
    ] {
        let error = exec_args(words).unwrap_err().to_string();
        assert!(error.contains(named), "{words:?}: {error}");
    }
}

#[test]
fn the_image_may_be_given_by_name() {
    let args = run_args(&["--image", "debian:12", "--exec", "id; ls"]).unwrap();
    assert_eq!((args.image(), args.command().len()), ("debian:12", 0));
    let args = run_args(&["--image", "debian:12", "Ls", "-l"]).unwrap();
    assert_eq!(args.command(), ["Ls", "-l"]);
}

#[test]
fn output_is_a_form_or_an_artifact() {
    let parsed = |words: &[&str]| parse(["microagent"].iter().chain(words));
    for words in [
        &["run", "--output", "json", "--output", "a=/a", "busybox"][..],
        &["--output", "json", "run", "--output=a=/a", "busybox"],
        &["--json", "create", "--output", "a=/a", "x", "busybox"],
        &[
            "create", "--output", "json", "x", "busybox", "--output", "a=/a",
        ],
    ] {
        let cli = parsed(words).unwrap();
        assert_eq!(cli.globals.form(), Form::Json, "{words:?}");
    }
    let cli = parsed(&["--output", "text", "list"]).unwrap();
    assert_eq!(cli.globals.form(), Form::Text);
    for (words, named) in [
        (
            &["run", "--output", "xml", "busybox"][..],
            "NAME=/guest/path",
        ),
        (&["run", "--output", "a=b", "busybox"], "absolute"),
        (&["run", "--json", "--output", "text", "busybox"], "--json"),
        (
            &["run", "--output", "text", "--output", "json", "busybox"],
            "twice",
        ),
        (&["list", "--output", "a=/a"], "json"),
        (
            &["run", "-d", "--artifacts-dir", "x", "busybox"],
            "--artifacts-dir",
        ),
    ] {
        let error = parsed(words).unwrap_err().to_string();
        assert!(error.contains(named), "{words:?}: {error}");
    }
}

#[test]
fn mistakes_are_named() {
    for (words, named) in [
        (&["--memory", "lots", "busybox"][..], "lots"),
        (&["--cpus", "0", "busybox"], "0"),
        (&["-e", "=x", "busybox"], "=x"),
        (&["--name", "Bad_Name", "busybox"], "Bad_Name"),
        (&["UPPER/Case:tag"], "UPPER/Case"),
        (&[], "IMAGE"),
        (&["--memroy", "1G", "busybox"], "--memory"),
        (&["--timeout", "soon", "busybox"], "soon"),
        (&["--profile", "huge", "busybox"], "huge"),
        (&["--keep", "--rm", "busybox"], "--rm"),
        (&["-d", "-t", "busybox"], "--detach"),
        (&["--exec", "x", "busybox", "y"], "--exec"),
    ] {
        let error = run_args(words).unwrap_err();
        assert!(error.use_stderr(), "{words:?}");
        assert!(error.to_string().contains(named), "{words:?}: {error}");
    }
}

#[test]
fn what_is_no_vm_boundary_is_refused_with_guidance() {
    for (words, hint) in [
        (&["--privileged"][..], "root in its own kernel"),
        (&["--cap-add", "NET_ADMIN"], "own kernel"),
        (&["--cap-drop=ALL"], "own kernel"),
        (&["--device", "/dev/fuse"], "device"),
        (&["--pid", "host"], "own kernel"),
        (&["--ipc=host"], "own kernel"),
        (&["--userns", "host"], "own kernel"),
        (&["--uts", "host"], "own kernel"),
        (&["--security-opt", "seccomp=unconfined"], "own kernel"),
        (&["--net", "host"], "--network user"),
        (&["--network", "bridge"], "--network user"),
        (&["--network=none"], "--network isolated"),
        (&["--network", "container:x"], "--network user"),
        (&["-v", "/tmp:/data"], "cp"),
        (&["--volume=/tmp:/data:ro"], "cp"),
        (&["--mount", "type=bind,src=/tmp,dst=/data"], "cp"),
        (&["--gpus", "all"], "device"),
        (&["-P"], "--publish"),
    ] {
        let words: Vec<_> = words.iter().copied().chain(["busybox", "true"]).collect();
        let error = run_args(&words).unwrap_err();
        assert!(error.use_stderr(), "{words:?}");
        assert!(error.to_string().contains(hint), "{words:?}: {error}");
    }
}

#[test]
fn commands_of_container_engines_are_answered() {
    for (words, hint) in [
        (["microagent", "compose", "up"], "microagent run"),
        (["microagent", "pod", "up"], "microagent run"),
        (["microagent", "build", "."], "microagent images"),
        (["microagent", "pull", "debian"], "microagent images pull"),
        (["microagent", "load", "x.tar"], "microagent images load"),
        (["microagent", "attach", "web"], "microagent connect"),
        (["microagent", "restart", "web"], "microagent start"),
        (["microagent", "container", "ls"], "microagent list"),
        (["microagent", "search", "debian"], "microagent run"),
    ] {
        let error = parse(words).unwrap_err();
        let guidance = refusals::command(&error, &Cli::command()).unwrap();
        assert!(
            guidance.contains(hint) && guidance.contains(words[1]),
            "{guidance}"
        );
    }
    let definition = Cli::command();
    for (word, instead) in refusals::COMMANDS {
        assert!(
            definition.find_subcommand(word).is_none(),
            "{word} is one of ours"
        );
        for named in instead
            .split('`')
            .filter_map(|it| it.strip_prefix("microagent "))
        {
            let mut command = &definition;
            for word in named.split(' ') {
                match command.find_subcommand(word) {
                    Some(found) => command = found,
                    None => break,
                }
            }
            assert!(
                command.get_name() != "microagent" && !command.has_subcommands(),
                "{word} leads to `{named}`, which there is not"
            );
        }
    }
    let error = parse(["microagent", "rnu", "x"]).unwrap_err();
    let guidance = refusals::command(&error, &Cli::command()).unwrap();
    assert!(guidance.contains("microagent run"), "{guidance}");
    let error = parse(["microagent", "doctr"]).unwrap_err();
    assert!(refusals::command(&error, &Cli::command()).is_none());
    assert!(error.to_string().contains("doctor"), "{error}");
}
