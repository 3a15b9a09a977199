//! Layers made to do harm: nothing outside of the directory is touched, and the error names the entry.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::mounted::scratch;
use e2e::require;

use crate::{fail, succeed, tool};

/// Writes a tar archive with a program in Python's standard library, entry by entry as told.
fn archive(base: &Path, entries: &str) -> Option<PathBuf> {
    let script = format!(
        "import tarfile, io, sys\n\
         t = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)\n\
         def add(name, kind=tarfile.REGTYPE, data=b'', link='', mode=0o755, major=0, minor=0, pax={{}}):\n\
         \ti = tarfile.TarInfo(name); i.type = kind; i.size = len(data); i.linkname = link; i.mode = mode\n\
         \ti.devmajor = major; i.devminor = minor; i.pax_headers = pax\n\
         \tt.addfile(i, io.BytesIO(data))\n\
         D, S, L, C, F = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE\n\
         {entries}\n\
         t.close()\n"
    );
    let path = base.join("hostile.tar");
    let made = Command::new("python3").arg("-c").arg(script).arg(&path).status();
    match made {
        Ok(status) => {
            assert!(status.success());
            Some(path)
        }
        Err(_) => {
            e2e::require::skip("tools::hostile", "no python3 to make archives with");
            None
        }
    }
}

struct Scene {
    scratch: tempfile::TempDir,
    dir: String,
    outside: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let scratch = scratch();
        let (dir, outside) = (scratch.path().join("in/dir"), scratch.path().join("outside"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        let dir = dir.display().to_string();
        Self { scratch, dir, outside }
    }

    fn archive(&self, entries: &str) -> Option<String> {
        archive(self.scratch.path(), entries).map(|path| path.display().to_string())
    }

    /// Checks that what stands outside is as it was.
    #[track_caller]
    fn check_outside(&self) {
        let names: Vec<_> =
            std::fs::read_dir(&self.outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(std::fs::read_to_string(self.outside.join("secret")).unwrap(), "secret");
        assert_eq!(std::fs::metadata(self.outside.join("secret")).unwrap().nlink(), 1);
        let inner: Vec<_> = std::fs::read_dir(self.scratch.path().join("in"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(inner, ["dir"]);
    }
}

#[test]
fn nothing_leads_out_of_the_directory() {
    require!(Union);
    for (entries, words) in [
        ("add('../evil', data=b'x')", &["../evil", ".."][..]),
        ("add('a/../../evil', data=b'x')", &["a/../../evil"]),
        ("add('link', S, link='../../outside')\nadd('link/evil', data=b'x')", &["link/evil", "no directory"]),
        (
            "add('link', S, link='../../outside/secret')\nadd('hard', L, link='link/x')",
            &["hard", "not there"],
        ),
        ("add('hard', L, link='../../outside/secret')", &["hard", ".."]),
        ("add('hard', L, link='outside')", &["hard", "not there"]),
        ("add('d', D)\nadd('hard', L, link='d')", &["hard", "directory"]),
        ("add('s', S, link='../../outside')\nadd('s/.wh.secret')", &["s/.wh.secret"]),
        ("add('s', S, link='../../outside')\nadd('s/.wh..wh..opq')", &["s/.wh..wh..opq"]),
        ("add('f', data=b'x')\nadd('f/g', data=b'x')", &["f/g", "no directory"]),
        ("add('.wh.')", &["entry \\\".wh.\\\""]),
        ("add('.wh.a/b')", &[".wh.a/b"]),
        ("add('zero', C)", &["zero", "whiteout"]),
        ("add('x'*256)", &["255"]),
    ] {
        let scene = Scene::new();
        let Some(tar) = scene.archive(entries) else { return };
        for format in ["plain", "oci"] {
            fail(&["apply", "-o", &format!("format={format}"), &tar, &scene.dir], words);
            scene.check_outside();
        }
    }
}

#[test]
fn absolute_names_and_type_changes_stay_inside() {
    require!(Union);
    let scene = Scene::new();
    let entries = "add('/abs', data=b'1')\n\
        add('link', S, link='../../outside')\nadd('link', data=b'2')\n\
        add('d/e/f', data=b'3')\nadd('d', S, link='../../outside')\nadd('d', D)\nadd('d/g', data=b'4')\n\
        add('twice', data=b'5')\nadd('twice', data=b'66')\n\
        add('suid', data=b'7', mode=0o6755)\nadd('self', L, link='twice')\nadd('self', L, link='self')\n\
        add('locked', D, mode=0o500)\nadd('locked/in', data=b'8')\nadd('p', F)";
    let Some(tar) = scene.archive(entries) else { return };
    succeed(&["apply", "-o", "format=plain", &tar, &scene.dir]);
    scene.check_outside();
    let read = |name: &str| std::fs::read_to_string(Path::new(&scene.dir).join(name)).unwrap();
    assert_eq!(
        (read("abs"), read("link"), read("d/g"), read("twice")),
        ("1".into(), "2".into(), "4".into(), "66".into())
    );
    assert!(!Path::new(&scene.dir).join("d/e").exists());
    assert_eq!(read("locked/in"), "8");
    let mode = |name: &str| {
        std::fs::metadata(Path::new(&scene.dir).join(name)).unwrap().permissions().mode() & 0o7777
    };
    let kept = if rustix::process::geteuid().is_root() { 0o6755 } else { 0o755 };
    assert_eq!((mode("suid"), mode("locked")), (kept, 0o500));
}

#[test]
fn a_whiteout_speaks_of_the_layers_below_only() {
    require!(Union);
    let scene = Scene::new();
    std::fs::create_dir_all(Path::new(&scene.dir).join("d/old")).unwrap();
    std::fs::write(Path::new(&scene.dir).join("gone"), "").unwrap();
    let entries = "add('d/new', data=b'1')\nadd('d/.wh..wh..opq')\nadd('kept', data=b'2')\nadd('.wh.kept')\n\
        add('.wh.gone')\nadd('.wh.never')\nadd('.wh..wh.aufs')\nadd('.wh..wh.plnk/1', data=b'x')";
    let Some(tar) = scene.archive(entries) else { return };
    succeed(&["apply", "-o", "format=plain", &tar, &scene.dir]);
    let mut names: Vec<_> = std::fs::read_dir(&scene.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "kept"]);
    assert!(Path::new(&scene.dir).join("d/new").exists() && !Path::new(&scene.dir).join("d/old").exists());
}

#[test]
fn marks_of_a_union_cannot_be_forged_by_a_layer() {
    require!(Union);
    let scene = Scene::new();
    let entries = "add('d', D, pax={'SCHILY.xattr.user.overlay.redirect': '/etc', 'SCHILY.xattr.user.fuseoverlayfs.opaque': 'y'})";
    let Some(tar) = scene.archive(entries) else { return };
    let output = tool(&["apply", "-o", "format=oci", &tar, &scene.dir]);
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    assert!(output.stderr.escape_ascii().to_string().contains("user.fuseoverlayfs.opaque cannot be kept: d"));
    let names: Vec<_> =
        e2e::snapshot::xattrs(&Path::new(&scene.dir).join("d")).unwrap().into_keys().collect();
    assert_eq!(names, [b"user.overlay.overlay.redirect".to_vec()]);
}

#[test]
fn a_damaged_archive_is_told_with_the_entry() {
    require!(Union);
    let scene = Scene::new();
    let Some(tar) = scene.archive("add('first', data=b'x'*5000)\nadd('second', data=b'y'*5000)") else {
        return;
    };
    let bytes = std::fs::read(&tar).unwrap();
    let write = |name: &str, bytes: &[u8]| -> String {
        let path = scene.scratch.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path.display().to_string()
    };
    for (cut, words) in
        [(300, "truncated"), (512 + 100, "first"), (7000, "second"), (bytes.len() - 10240, "truncated")]
    {
        fail(&["apply", &write("cut.tar", &bytes[..cut.min(11264)]), &scene.dir], &[words, "truncated"]);
    }
    let mut flipped = bytes.clone();
    flipped[10] ^= 0xff;
    fail(&["apply", &write("flipped.tar", &flipped), &scene.dir], &["checksum"]);
    fail(&["apply", &write("text", &[b'a'; 2000]), &scene.dir], &["no tar archive"]);
    fail(&["apply", &write("xz", b"\xfd7zXZ\0rest"), &scene.dir], &["xz"]);
    fail(&["apply", &write("gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff\xff"), &scene.dir], &["damaged"]);
    fail(&["apply", "/nowhere/layer.tar", &scene.dir], &["cannot open"]);
}
