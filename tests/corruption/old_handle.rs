//! A read-only handle opened before the copy-up must read what was written after it, and must not put old
//! data into the page cache that writers share.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::require;
use e2e::sys::SharedMapping;
use e2e::tree::LayerTree;
use rustix::fs::{Advice, fadvise};

use crate::Fixture;

const SIZE: usize = 65_536;
const PAGE: usize = 4096;

/// Who keeps what was written: the kernel for a while, nobody, the file that the kernel was handed.
const WAYS: [&str; 3] = [",writeback=1", ",writeback=0", ",data=passthrough"];

fn fixture(extra: &str) -> Fixture {
    Fixture::new(&LayerTree::new().file("big", vec![b'A'; SIZE]).dir("d"), extra)
}

fn open_both(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn page(file: &File, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Returns bytes as text, equal ones counted, so that a failure can be read.
fn runs(bytes: &[u8]) -> String {
    let run = |run: &[u8]| format!("{} x '{}'", run.len(), run[..1].escape_ascii());
    bytes.chunk_by(|a, b| a == b).map(run).collect::<Vec<_>>().join(", ")
}

/// Drops the clean pages that the kernel keeps of this file.
fn forget_pages(file: &File) {
    file.sync_all().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

fn write_b(file: &File) {
    file.write_all_at(&vec![b'B'; SIZE], 0).unwrap();
    forget_pages(file);
}

/// Both handles read `B`; one byte written afterwards changes one byte on disk.
fn check_both_read_b(fixture: &Fixture, name: &str, old: &File, new: &File) {
    assert_eq!(runs(&page(old, 0)), runs(&[b'B'; PAGE]), "the handle from before the copy-up reads old data");
    assert_eq!(runs(&page(new, 0)), runs(&[b'B'; PAGE]), "the writer reads old data");
    new.write_all_at(b"C", 10).unwrap();
    new.sync_all().unwrap();
    let mut want = vec![b'B'; SIZE];
    want[10] = b'C';
    assert_eq!(
        runs(&std::fs::read(fixture.upper(name)).unwrap()),
        runs(&want),
        "old data was written over new"
    );
    forget_pages(new);
    assert_eq!(runs(&page(old, 0)), runs(&want[..PAGE]));
}

#[test]
fn a_read_only_handle_from_before_the_copy_up_reads_new_data() {
    require!(Fuse, Union);
    for extra in WAYS {
        let fixture = fixture(extra);
        let old = File::open(fixture.at("big")).unwrap();
        let new = open_both(&fixture.at("big"));
        write_b(&new);
        check_both_read_b(&fixture, "big", &old, &new);
        drop((old, new));
        fixture.finish();
    }
}

#[test]
fn a_handle_that_has_read_before_the_copy_up_reads_new_data() {
    require!(Fuse, Union);
    for extra in WAYS {
        let fixture = fixture(extra);
        let old = File::open(fixture.at("big")).unwrap();
        assert_eq!(runs(&page(&old, 0)), runs(&[b'A'; PAGE]));
        let new = open_both(&fixture.at("big"));
        write_b(&new);
        check_both_read_b(&fixture, "big", &old, &new);
        drop((old, new));
        fixture.finish();
    }
}

#[test]
fn a_mapping_from_before_the_copy_up_shows_new_data() {
    require!(Fuse, Union);
    let fixture = fixture(",writeback=1");
    let old = File::open(fixture.at("big")).unwrap();
    let mapping = SharedMapping::new(&old, SIZE, false).unwrap();
    let new = open_both(&fixture.at("big"));
    write_b(&new);
    mapping.refault().unwrap();
    let mut bytes = vec![0; PAGE];
    mapping.read(0, &mut bytes);
    assert_eq!(runs(&bytes), runs(&[b'B'; PAGE]));
    check_both_read_b(&fixture, "big", &old, &new);
    drop((mapping, old, new));
    fixture.finish();
}

#[test]
fn sendfile_from_a_handle_from_before_the_copy_up_sends_new_data() {
    require!(Fuse, Union);
    let fixture = fixture(",writeback=1");
    let old = File::open(fixture.at("big")).unwrap();
    let new = open_both(&fixture.at("big"));
    write_b(&new);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut offset = 0;
    assert_eq!(rustix::fs::sendfile(&writer, &old, Some(&mut offset), PAGE).unwrap(), PAGE);
    drop(writer);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(runs(&bytes), runs(&[b'B'; PAGE]));
    check_both_read_b(&fixture, "big", &old, &new);
    drop((old, new));
    fixture.finish();
}

#[test]
fn a_handle_of_another_process_reads_new_data() {
    require!(Fuse, Union);
    let fixture = fixture(",writeback=1");
    let mut child = Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; echo ready; read go; exec cat <&3"])
        .arg(fixture.at("big"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let new = open_both(&fixture.at("big"));
    write_b(&new);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(bytes == vec![b'B'; SIZE], "another process reads old data");
    drop(new);
    fixture.finish();
}

#[test]
fn a_handle_follows_every_kind_of_copy_up() {
    require!(Fuse, Union);
    type Change = fn(&Fixture) -> &'static str;
    let chmod: Change = |f| {
        std::fs::set_permissions(f.at("big"), std::fs::Permissions::from_mode(0o600)).unwrap();
        "big"
    };
    let rename: Change = |f| {
        std::fs::rename(f.at("big"), f.at("d/other")).unwrap();
        "d/other"
    };
    let link: Change = |f| {
        std::fs::hard_link(f.at("big"), f.at("second")).unwrap();
        "second"
    };
    let truncate: Change = |f| {
        open_both(&f.at("big")).set_len(SIZE as u64 - 1).unwrap();
        "big"
    };
    let xattr: Change = |f| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(f.at("big"), "user.x", b"1", flags).unwrap();
        "big"
    };
    for (what, change) in
        [("chmod", chmod), ("rename", rename), ("link", link), ("truncate", truncate), ("xattr", xattr)]
    {
        let fixture = fixture(",writeback=1");
        let old = File::open(fixture.at("big")).unwrap();
        assert_eq!(runs(&page(&old, 0)), runs(&[b'A'; PAGE]), "{what}");
        let name = change(&fixture);
        let new = open_both(&fixture.at(name));
        write_b(&new);
        assert_eq!(runs(&page(&old, PAGE as u64)), runs(&[b'B'; PAGE]), "{what}");
        check_both_read_b(&fixture, name, &old, &new);
        drop((old, new));
        fixture.finish();
    }
}

#[test]
fn a_handle_follows_a_truncating_open() {
    require!(Fuse, Union);
    for extra in WAYS {
        let fixture = fixture(extra);
        let old = File::open(fixture.at("big")).unwrap();
        assert_eq!(runs(&page(&old, 0)), runs(&[b'A'; PAGE]));
        let new = OpenOptions::new().read(true).write(true).truncate(true).open(fixture.at("big")).unwrap();
        assert_eq!(old.metadata().unwrap().len(), 0);
        write_b(&new);
        check_both_read_b(&fixture, "big", &old, &new);
        drop((old, new));
        fixture.finish();
    }
}

#[test]
fn a_handle_of_a_removed_file_keeps_the_old_data() {
    require!(Fuse, Union);
    for extra in WAYS {
        let fixture = fixture(extra);
        let old = File::open(fixture.at("big")).unwrap();
        std::fs::remove_file(fixture.at("big")).unwrap();
        std::fs::write(fixture.at("big"), vec![b'B'; SIZE]).unwrap();
        let new = open_both(&fixture.at("big"));
        forget_pages(&new);
        fadvise(&old, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(runs(&page(&old, 0)), runs(&[b'A'; PAGE]), "an unlinked file is another object");
        assert_eq!(runs(&page(&new, 0)), runs(&[b'B'; PAGE]));
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&old.metadata().unwrap()), 0);
        drop((old, new));
        fixture.finish();
    }
}

#[test]
fn readers_that_race_a_copy_up_end_with_new_data() {
    require!(Fuse, Union);
    for _ in 0..10 {
        let fixture = fixture(",writeback=1");
        let path = fixture.at("big");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let old = File::open(&path).unwrap();
                    for _ in 0..200 {
                        let bytes = page(&old, 8192);
                        assert!(bytes.iter().all(|byte| matches!(byte, b'A' | b'B')));
                        fadvise(&old, 0, None, Advice::DontNeed).unwrap();
                    }
                });
            }
            scope.spawn(|| write_b(&open_both(&path)));
        });
        let (old, new) = (File::open(&path).unwrap(), open_both(&path));
        check_both_read_b(&fixture, "big", &old, &new);
        drop((old, new));
        fixture.finish();
    }
}
