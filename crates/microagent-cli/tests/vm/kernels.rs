//! Kernels are chosen and read again.

use std::fs;

use testkit::Sandbox;

#[test]
fn a_kernel_is_chosen_and_what_changed_in_it_is_named() {
    let sandbox = Sandbox::own(env!("CARGO_BIN_EXE_microagent"));
    let json = |arguments: [&str; 3]| sandbox.microagent(arguments).json().run();
    let first = sandbox.microagent(["kernel", "list"]).json().run().parsed()["kernels"][0].clone();
    let first = first["id"].as_str().unwrap();
    let file = sandbox.state().join("kernels").join(first).join("vmlinux");

    // The same image without its modules is another kernel, taken as it is.
    let second = sandbox
        .microagent(["kernel", "install", "--from"])
        .arg(file.to_str().unwrap())
        .json()
        .run()
        .success()
        .parsed();
    let second = second["id"].as_str().unwrap();
    assert_ne!(first, second);

    for kernel in [first, second] {
        let chosen = json(["kernel", "use", kernel]).success().parsed();
        assert_eq!(chosen["id"], kernel);
        let list = sandbox.microagent(["kernel", "list"]).json().run();
        assert_eq!(list.parsed()["default"], kernel, "{list}");
    }
    let unknown = json(["kernel", "use", "6.1-none"]).exited(1);
    assert!(unknown.err().contains("not_found"), "{unknown}");

    let whole = json(["kernel", "verify", "--all"]).success().parsed();
    assert_eq!(whole["ok"], true);
    for kernel in whole["kernels"].as_array().unwrap() {
        // The distribution's lists vouch for the first; for a file nobody does.
        assert_eq!(kernel["vouched"], kernel["id"] == first, "{whole}");
    }
    let text = sandbox.microagent(["kernel", "verify", second]).run();
    assert!(text.out().contains("nobody vouched"), "{text}");

    let vmlinux = sandbox.state().join("kernels").join(second).join("vmlinux");
    let mut bytes = fs::read(&vmlinux).unwrap();
    bytes[4096] ^= 1;
    fs::write(&vmlinux, bytes).unwrap();
    let checked = json(["kernel", "verify", "--all"]).exited(1).parsed();
    assert_eq!(checked["ok"], false);
    let damaged: Vec<_> = checked["kernels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|kernel| kernel["ok"] == false)
        .collect();
    assert!(
        damaged.len() == 1
            && damaged[0]["id"] == second
            && damaged[0]["divergence"][0]["file"] == "vmlinux",
        "{checked}"
    );
    sandbox
        .microagent(["kernel", "verify", first])
        .run()
        .success();
    assert!(
        sandbox
            .microagent(["kernel", "verify", second])
            .run()
            .exited(1)
            .out()
            .contains("damaged")
    );
}
