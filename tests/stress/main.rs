//! Many threads at once, each on names of its own, so that every call has one right answer.

mod shared;
mod soak;

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use e2e::mounted::{Layers, Mounted, scratch};
use e2e::require;
use e2e::tree::LayerTree;

/// Threads at once.
const THREADS: usize = 4;

fn rounds() -> usize {
    std::env::var("E2E_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

/// Runs `work(directory, round)` in several threads on a fresh mount, and fails with what went wrong.
fn threads(work: impl Fn(&Path, usize) -> Result<()> + Sync) {
    let scratch = scratch();
    let layers = Layers::below(scratch.path(), 1);
    let tree = (0..THREADS).fold(LayerTree::new(), |tree, n| tree.file(format!("t{n}/lower"), "low"));
    tree.build(&layers.lowers[0]);
    let mounted = Mounted::new(layers);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let directory = mounted.root().join(format!("t{thread}"));
            let work = &work;
            scope.spawn(move || {
                for round in 0..rounds() {
                    work(&directory, round)
                        .unwrap_or_else(|error| panic!("thread {thread}, round {round}: {error}"));
                }
            });
        }
    });
}

fn during<T>(call: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| std::io::Error::new(error.kind(), format!("{call}: {error}")))
}

/// Layers on one file system give the number of a removed file to the next one at once.
#[test]
fn numbers_that_are_used_again_do_not_confuse_names() {
    require!(Fuse, Union);
    threads(|directory, round| {
        let name = directory.join(format!("file{round}"));
        let link = directory.join("link");
        drop(during("create", File::create_new(&name))?);
        during("link", std::fs::hard_link(&name, &link))?;
        during("unlink", std::fs::remove_file(&name))?;
        let meta = during("stat", std::fs::metadata(&link))?;
        assert_eq!(meta.nlink(), 1);
        during("rename", std::fs::rename(&link, &name))?;
        during("unlink again", std::fs::remove_file(&name))?;
        let made = directory.join(format!("dir{round}"));
        during("mkdir", std::fs::create_dir(&made))?;
        during("create inside", std::fs::write(made.join("x"), b"1"))?;
        during("rename over nothing", std::fs::rename(made.join("x"), made.join("y")))?;
        during("symlink", std::os::unix::fs::symlink("y", made.join("s")))?;
        assert_eq!(during("read through", std::fs::read(made.join("s")))?, b"1");
        during("remove all", std::fs::remove_dir_all(&made))
    });
}

#[test]
fn a_name_that_was_just_made_can_be_used_in_every_way() {
    require!(Fuse, Union);
    threads(|directory, round| {
        let (a, b) = (directory.join(format!("a{}", round % 3)), directory.join(format!("b{}", round % 2)));
        during("write", std::fs::write(&a, round.to_string()))?;
        during("rename", std::fs::rename(&a, &b))?;
        assert_eq!(during("read", std::fs::read_to_string(&b))?, round.to_string());
        during("mkdir", std::fs::create_dir(&a))?;
        during("rename into", std::fs::rename(&b, a.join("inside")))?;
        assert_eq!(during("list", std::fs::read_dir(&a))?.count(), 1);
        during("unlink", std::fs::remove_file(a.join("inside")))?;
        during("rmdir", std::fs::remove_dir(&a))?;
        let lower = directory.join("lower");
        let copy = directory.join("copy");
        if round % 2 == 0 {
            during("move", std::fs::rename(&lower, &copy))
        } else {
            during("back", std::fs::rename(&copy, &lower))
        }
    });
}

/// A new directory may have the inode number of a removed one: nothing remembered of that one may answer.
#[test]
fn a_new_directory_knows_nothing_of_a_removed_one_whose_number_is_reused() {
    require!(Fuse, Union);
    threads(|directory, round| {
        let old = directory.join(format!("old{round}"));
        during("mkdir", std::fs::create_dir(&old))?;
        during("write", std::fs::write(old.join("a"), b"1"))?;
        during("unlink", std::fs::remove_file(old.join("a")))?;
        assert_eq!(during("list", std::fs::read_dir(&old))?.count(), 0);
        during("rmdir", std::fs::remove_dir(&old))?;
        let new = directory.join(format!("new{round}"));
        during("mkdir again", std::fs::create_dir(&new))?;
        drop(during("create", File::create_new(new.join("f")))?);
        during("link", std::fs::hard_link(new.join("f"), new.join("l")))?;
        during("unlink of a name that is there", std::fs::remove_file(new.join("f")))?;
        assert_eq!(during("list again", std::fs::read_dir(&new))?.count(), 1);
        during("remove all", std::fs::remove_dir_all(&new))
    });
}
