//! Kernels of a signed repository.

use std::fs;

use testkit::{
    Sandbox,
    kernels::{Published, Recipe, kernel, root},
    sha256,
};

use super::{count, sandbox};

#[test]
fn a_channel_of_a_signed_repository_is_installed() {
    let (sandbox, published) = (sandbox(), tempfile::tempdir().unwrap());
    let repository = Published::new(published.path());
    repository.publish(&Recipe::version(1));
    let install = |from: &str| {
        sandbox
            .microagent(["kernel", "install", "--channel", "stable", "--from", from])
            .args(["--trust-root"])
            .arg(repository.trusted())
    };
    // Over HTTP, and the newer one later from the directory itself.
    let url = repository.serve();
    let first = install(&format!("tuf:{url}")).json().run().success();
    assert_eq!(first.parsed()["sha256"], sha256(&kernel(1)));
    repository.publish(&Recipe::version(2));
    let second = install(&format!("tuf:{}", repository.url()))
        .args(["--default"])
        .json()
        .run()
        .success()
        .parsed();
    assert_eq!(second["sha256"], sha256(&kernel(2)));
    assert_eq!(count(&sandbox), 2);

    let list = sandbox.microagent(["kernel", "list"]).run().success();
    assert!(list.out().contains(&format!("stable of {url}")), "{list}");
    let checked = sandbox.microagent(["kernel", "verify", "--all"]).json();
    let checked = checked.run().success().parsed();
    for kernel in checked["kernels"].as_array().unwrap() {
        assert_eq!(kernel["vouched"], true, "{checked}");
    }
    // The address alone, and no root to trust, is not enough; neither are options of something else.
    let none = sandbox
        .microagent(["kernel", "install", "--from"])
        .arg(format!("tuf:{url}"))
        .run()
        .exited(1);
    assert!(none.err().contains("root metadata"), "{none}");
    for option in ["--channel", "--trust-root"] {
        let misplaced = sandbox
            .microagent(["kernel", "install", "--from", "host", option, "x"])
            .run();
        assert_ne!(misplaced.code(), 0, "{misplaced}");
        let said = misplaced.err();
        assert!(
            said.contains(option) && said.contains("--from tuf:URL"),
            "{misplaced}"
        );
    }
}

/// Refused with these words, and nothing is installed.
fn refused(sandbox: &Sandbox, repository: &Published, channel: &str, words: &[&str]) {
    let before = count(sandbox);
    let refused = sandbox
        .microagent(["kernel", "install", "--channel", channel, "--from"])
        .arg(format!("tuf:{}", repository.url()))
        .args(["--trust-root"])
        .arg(repository.trusted())
        .run()
        .exited(1);
    for word in words {
        assert!(refused.err().contains(word), "{word}: {refused}");
    }
    assert!(refused.err().contains(&repository.url()), "{refused}");
    assert_eq!(count(sandbox), before);
}

#[test]
fn what_nobody_vouches_for_is_not_installed() {
    let (sandbox, published) = (sandbox(), tempfile::tempdir().unwrap());
    let repository = Published::new(published.path());
    let refused = |channel, words: &[&str]| refused(&sandbox, &repository, channel, words);

    let expired = Recipe {
        targets_expires: -1,
        ..Recipe::version(1)
    };
    repository.publish(&expired);
    refused("stable", &["expired at"]);

    let unsigned = Recipe {
        signers_of_targets: vec![4],
        ..Recipe::version(1)
    };
    repository.publish(&unsigned);
    refused("stable", &["threshold"]);

    repository.publish(&Recipe::version(1));
    let sound = fs::read(repository.kernel()).unwrap();
    let mut tampered = sound.clone();
    tampered[100] ^= 1;
    fs::write(repository.kernel(), tampered).unwrap();
    refused("stable", &["kernel"]);
    fs::write(repository.kernel(), &sound).unwrap();
    refused("nightly", &["nightly"]);

    // A root that somebody else signed is as good as none.
    repository.put("trusted.json", &root(1, 2, false, &[6], 24));
    refused("stable", &["root of trust"]);
}
