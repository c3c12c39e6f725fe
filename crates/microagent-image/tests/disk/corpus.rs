//! Images as many tools make them, imported by us and unpacked by umoci: the same, name by name.
//!
//! Every run takes the quick recipes and a Debian; `MICROAGENT_CORPUS=all` (`cargo xtask corpus`) takes all.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use microagent_image::{ImageStore, ImportOptions};
use testkit::corpus::{Made, RECIPES};

use crate::oracle::{Mounted, differences, directory, e2fsck, tool, umoci, unpacked_layout};

fn cache() -> PathBuf {
    std::env::var_os("MICROAGENT_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"),
        PathBuf::from,
    )
}

/// Imports an image and holds it against umoci; how many names it has, or what is different.
fn compare(made: &Made) -> Result<usize, String> {
    let work = directory();
    let store = ImageStore::open(work.path().join("images")).unwrap();
    let options = ImportOptions::new().reference("corpus:1".parse().unwrap());
    let record = store.import(&made.image, &options, &|_| {}).unwrap();
    let disk = store.base_disk(&record, &|_| {}).unwrap();
    let flat = disk.flat().unwrap();
    e2fsck(&flat);
    let begun = SystemTime::now();
    let theirs = match &made.layout {
        Some(layout) => unpacked_layout(layout, "corpus", work.path()).unwrap(),
        None => umoci(&[plain(&made.image)], work.path()),
    };
    let mounted = Mounted::new(&flat);
    let (different, names) = differences(mounted.path(), &theirs, begun);
    if different.is_empty() {
        return Ok(names);
    }
    let count = different.len();
    let shown: Vec<String> = different.into_values().take(20).collect();
    Err(format!("{count} differences:\n{}", shown.join("\n")))
}

/// The bytes of a tar that may be packed.
fn plain(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = File::open(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::MultiGzDecoder::new(file)
            .read_to_end(&mut bytes)
            .unwrap();
    } else {
        bytes = fs::read(path).unwrap();
    }
    bytes
}

/// Holds an image against umoci, and says so in a line that `cargo xtask corpus` counts.
fn judge(name: &str, by: &str, from: &str, made: &Made) -> Result<usize, String> {
    let begun = Instant::now();
    let judged = compare(made).map_err(|different| format!("{name}: {different}"))?;
    let took = made.took.map_or_else(
        || "made before".to_owned(),
        |took| format!("made in {:.1} s", took.as_secs_f64()),
    );
    println!(
        "\ncorpus: image {name}, of {from}, by {by}: {judged} names the same, {took}, compared in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(judged)
}

#[test]
fn images_of_many_tools_are_what_umoci_unpacks() {
    let all = std::env::var("MICROAGENT_CORPUS").is_ok_and(|wanted| wanted == "all");
    let mut wrong = Vec::new();
    for recipe in RECIPES.iter().filter(|recipe| all || recipe.is_quick) {
        let judged = recipe
            .make(&cache())
            .map_err(|error| format!("{}: {error:#}", recipe.name))
            .and_then(|made| judge(recipe.name, recipe.by, recipe.from, &made));
        if let Err(reason) = judged {
            println!("\ncorpus: WRONG {reason}");
            wrong.push(recipe.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

/// The image of the demo and of the tests with machines.
#[test]
fn debian_is_what_umoci_unpacks() {
    let tar = cache().join("debian-12-minbase.tar.gz");
    if !tar.exists() {
        fs::create_dir_all(cache()).unwrap();
        let partial = cache().join(format!("debian-12-minbase.{}.tar.gz", std::process::id()));
        tool(
            "mmdebstrap",
            "mmdebstrap",
            &[
                "--quiet",
                "--variant=minbase",
                "bookworm",
                partial.to_str().unwrap(),
            ],
        );
        fs::rename(&partial, &tar).unwrap();
    }
    let made = Made {
        image: tar,
        layout: None,
        took: None,
    };
    let names = judge("debian-minbase", "mmdebstrap", "packages", &made).unwrap();
    assert!(names > 5000, "{names} names");
}
