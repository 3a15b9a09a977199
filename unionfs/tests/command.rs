//! The command as its callers use it: when it returns, what it leaves behind, how it ends.
//!
//! Each test makes its own directories and takes its own mount away. Where FUSE cannot be used a test says so and
//! passes; with `E2E_STRICT=1` it fails.

#[cfg(test)]
mod command {
    use std::ffi::OsStr;
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use tempfile::TempDir;

    /// The user without privilege; it exists everywhere.
    const NOBODY: u32 = 65534;

    /// How long anything may take before the test gives up.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Directories for a mount. Dropped, it takes the mount away.
    struct Scene {
        dir: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::Builder::new().prefix("unionfs-command-").tempdir().unwrap();
            for name in ["lower", "upper", "work", "mnt"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            fs::write(dir.path().join("lower/file"), "lower\n").unwrap();
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Gives everything to the user without privilege.
        fn give_to_nobody(&self) {
            for name in ["", "lower", "lower/file", "upper", "work", "mnt"] {
                std::os::unix::fs::chown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }

        fn options(&self) -> String {
            let path = |name: &str| self.path(name).display().to_string();
            format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"))
        }

        fn command(&self, flags: &[&str]) -> Command {
            self.command_of(Path::new(env!("CARGO_BIN_EXE_unionfs")), flags)
        }

        fn command_of(&self, program: &Path, flags: &[&str]) -> Command {
            let mut command = Command::new(program);
            command.args(flags).arg("-o").arg(self.options()).arg(self.path("mnt"));
            command
        }

        /// Returns a copy of the program that every user can reach, wherever the project is.
        fn program_for_all(&self) -> PathBuf {
            let copy = self.path("unionfs");
            // By another process: a file that this one has open for writing, others that it starts just then hold as well.
            let mut install = Command::new("install");
            install.args(["-m", "0755", env!("CARGO_BIN_EXE_unionfs")]).arg(&copy);
            assert!(run(&mut install).status.success());
            copy
        }

        /// Starts a server in the foreground and waits until it serves.
        fn serve(&self) -> Child {
            let server = self.command(&["-f"]).spawn().unwrap();
            wait_for(|| self.is_mounted());
            assert_eq!(fs::read_to_string(self.path("mnt/file")).unwrap(), "lower\n");
            server
        }

        fn is_mounted(&self) -> bool {
            let mountpoint = self.path("mnt").display().to_string();
            let table = fs::read_to_string("/proc/self/mounts").unwrap();
            table.lines().any(|line| line.split(' ').nth(1) == Some(mountpoint.as_str()))
        }

        /// Returns the processes that serve this mount.
        fn servers(&self) -> Vec<Pid> {
            let mountpoint = self.path("mnt").into_os_string().into_encoded_bytes();
            let mut found = Vec::new();
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let Some(pid) = entry.file_name().into_string().ok().and_then(|name| name.parse().ok())
                else {
                    continue;
                };
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                if line.split(|&byte| byte == 0).any(|argument| argument == mountpoint) {
                    found.push(Pid::from_raw(pid));
                }
            }
            found
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            if self.is_mounted() {
                run(Command::new("umount").arg("-l").arg(self.path("mnt")));
            }
        }
    }

    /// Runs a command to its end, and reads its output to the end.
    fn run(command: &mut Command) -> Output {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (send, ended) = std::sync::mpsc::channel();
        let guard = std::thread::spawn(move || {
            if ended.recv_timeout(LIMIT).is_err() {
                kill(pid, Signal::SIGKILL).unwrap();
            }
        });
        let output = child.wait_with_output().unwrap();
        send.send(()).unwrap();
        guard.join().unwrap();
        output
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LIMIT, "gave up waiting");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_end(child: &mut Child) -> Option<i32> {
        let mut status = None;
        wait_for(|| {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    fn is_root() -> bool {
        nix::unistd::geteuid().is_root()
    }

    /// Says why a test is skipped, or fails where skipping is not allowed.
    fn skip(reason: &str) {
        assert!(std::env::var_os("E2E_STRICT").is_none(), "skipped: {reason}");
        println!("SKIP: {reason}");
    }

    fn is_installed(program: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    }

    fn cannot_mount() -> bool {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if device.is_err() {
            skip("/dev/fuse cannot be opened");
        } else if !is_root() && !is_installed("fusermount3") {
            skip("not root and no fusermount3");
        } else {
            return false;
        }
        true
    }

    fn umount(path: &Path) -> Output {
        let program = if is_root() { "umount" } else { "fusermount3" };
        let flags: &[&str] = if is_root() { &[] } else { &["-u"] };
        run(Command::new(program).args(flags).arg(path))
    }

    #[test]
    fn it_returns_when_the_mount_is_live_and_ends_with_it() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        let output = run(&mut scene.command(&[]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
        assert_eq!(fs::read_to_string(scene.path("mnt/file")).unwrap(), "lower\n");
        fs::write(scene.path("mnt/file"), "changed\n").unwrap();
        assert_eq!(scene.servers().len(), 1);
        let done = umount(&scene.path("mnt"));
        assert!(done.status.success(), "{}", text(&done.stderr));
        wait_for(|| scene.servers().is_empty());
        assert_eq!(fs::read_to_string(scene.path("upper/file")).unwrap(), "changed\n");
        assert_eq!(fs::read_to_string(scene.path("lower/file")).unwrap(), "lower\n");
    }

    #[test]
    fn a_caller_that_reads_its_pipes_to_the_end_is_let_go() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        // A descriptor beside the standard ones, as careless callers leave behind.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let script = format!("exec 9>&0; exec 0</dev/null; exec {} \"$@\"", env!("CARGO_BIN_EXE_unionfs"));
        let child = Command::new("sh")
            .args(["-c", &script, "sh", "-o", &scene.options()])
            .arg(scene.path("mnt"))
            .stdin(writer)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
        assert!(scene.is_mounted());
    }

    #[test]
    fn signals_unmount_and_end_it_with_success() {
        if cannot_mount() {
            return;
        }
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let scene = Scene::new();
            let mut server = scene.serve();
            let pid = Pid::from_raw(i32::try_from(server.id()).unwrap());
            for harmless in [Signal::SIGUSR1, Signal::SIGPIPE] {
                kill(pid, harmless).unwrap();
            }
            assert_eq!(fs::read_to_string(scene.path("mnt/file")).unwrap(), "lower\n");
            kill(pid, signal).unwrap();
            assert_eq!(wait_for_end(&mut server), Some(0), "{signal}");
            assert!(!scene.is_mounted(), "{signal}");
        }
    }

    #[test]
    fn a_signal_ends_it_even_if_the_mount_is_in_use() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        let mut server = scene.serve();
        let held = fs::File::open(scene.path("mnt/file")).unwrap();
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(wait_for_end(&mut server), Some(0));
        assert!(!scene.is_mounted());
        drop(held);
    }

    #[test]
    fn what_cannot_be_mounted_is_one_line_and_no_mount() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        let lower = format!("lowerdir={}", scene.path("lower").display());
        let mountpoint = scene.path("mnt");
        let file = scene.path("lower/file");
        let cases: [(&[&OsStr], &str); 8] = [
            (&[], "no mount point"),
            (&["-o".as_ref(), lower.as_ref()], "no mount point"),
            (&[mountpoint.as_ref()], "lowerdir not specified"),
            (&["-o".as_ref(), "lowerdir=/nowhere/at/all".as_ref(), mountpoint.as_ref()], "/nowhere/at/all"),
            (&["-o".as_ref(), lower.as_ref(), "/nowhere/at/all".as_ref()], "/nowhere/at/all"),
            (&["-o".as_ref(), lower.as_ref(), file.as_ref()], "lower/file"),
            (&["-o".as_ref(), lower.as_ref(), "-otimeout=x".as_ref(), mountpoint.as_ref()], "timeout=x"),
            (
                &["-o".as_ref(), lower.as_ref(), "-oupperdir=/u".as_ref(), mountpoint.as_ref()],
                "workdir not specified",
            ),
        ];
        for foreground in [false, true] {
            for (arguments, want) in cases {
                let mut command = Command::new(env!("CARGO_BIN_EXE_unionfs"));
                command.args(foreground.then_some("-f")).args(arguments);
                let output = run(&mut command);
                let message = text(&output.stderr);
                assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
                assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
                assert!(
                    message.starts_with("unionfs: ") && message.contains(want),
                    "{arguments:?}: {message}"
                );
                assert!(!scene.is_mounted(), "{arguments:?}");
            }
        }
    }

    #[test]
    fn unknown_words_are_told_and_do_not_stop_it() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        let output = run(scene.command(&["-o", "frobnicate,private"]).arg("-onofail"));
        assert!(output.status.success());
        assert_eq!(text(&output.stderr), "unionfs: unknown argument ignored: frobnicate\n");
    }

    #[test]
    fn version_and_help_need_no_mount() {
        for (flag, want) in
            [("--version", "unionfs: version "), ("-V", "unionfs: version "), ("--help", "usage: ")]
        {
            let output = run(Command::new(env!("CARGO_BIN_EXE_unionfs")).arg(flag));
            assert!(output.status.success(), "{flag}");
            assert!(text(&output.stdout).starts_with(want), "{flag}");
        }
    }

    #[test]
    fn root_of_a_user_namespace_mounts_by_itself() {
        if cannot_mount() {
            return;
        }
        let namespace = ["--user", "--map-root-user", "--mount"];
        if run(Command::new("unshare").args(namespace).arg("true")).status.code() != Some(0) {
            return skip("user namespaces are not allowed");
        }
        let scene = Scene::new();
        let script = "\"$0\" -o \"$1\" \"$2\" && cat \"$2/file\" && echo new >\"$2/new\" && umount \"$2\"";
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", script, env!("CARGO_BIN_EXE_unionfs"), &scene.options()]);
        let output = run(command.arg(scene.path("mnt")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "lower\n");
        assert_eq!(fs::read_to_string(scene.path("upper/new")).unwrap(), "new\n");
    }

    #[test]
    fn a_user_without_privilege_mounts_by_fusermount() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        if is_root() {
            scene.give_to_nobody();
        }
        let as_plain_user = |command: &mut Command| {
            if is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        };
        if !is_installed("fusermount3") {
            return skip("no fusermount3");
        }
        let mut command = scene.command_of(&scene.program_for_all(), &[]);
        as_plain_user(&mut command);
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut cat = Command::new("cat");
        as_plain_user(cat.arg(scene.path("mnt/file")));
        assert_eq!(text(&run(&mut cat).stdout), "lower\n");
        let mut unmount = Command::new("fusermount3");
        as_plain_user(unmount.arg("-u").arg(scene.path("mnt")));
        assert!(run(&mut unmount).status.success());
        wait_for(|| scene.servers().is_empty());
    }

    /// The kernel forgets set-id bits only if it asks: it must ask before it executes the file.
    #[test]
    fn set_id_bits_that_a_write_takes_away_are_gone_at_once() {
        if cannot_mount() || !is_root() {
            return skip("needs root, to write as another user");
        }
        for transport in ["fuser", "dev"] {
            let scene = Scene::new();
            let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(scene.dir.path(), mode(0o755)).unwrap();
            let options = format!("transport={transport}");
            assert!(run(&mut scene.command(&["-o", &options])).status.success());
            for change in [": >\"$0\"", "echo more >>\"$0\""] {
                let file = scene.path("mnt/file");
                fs::set_permissions(&file, mode(0o6777)).unwrap();
                let mut writer = Command::new("sh");
                writer.args(["-c", change]).arg(&file).uid(NOBODY).gid(NOBODY);
                let output = run(&mut writer);
                assert!(output.status.success(), "{change}: {}", text(&output.stderr));
                // Asks for the mode and nothing else, which the kernel may answer from its cache.
                let shown = run(Command::new("stat").args(["-c", "%a"]).arg(&file));
                assert_eq!(text(&shown.stdout), "777\n", "{transport}: {change}");
            }
        }
    }

    #[test]
    fn a_descriptor_that_the_caller_has_mounted_is_taken_over() {
        if cannot_mount() || !is_root() || !is_installed("mount.fuse3") {
            return skip("needs root and mount.fuse3");
        }
        let scene = Scene::new();
        let options = format!("drop_privileges,lowerdir={}", scene.path("lower").display());
        let mut command = Command::new("mount.fuse3");
        command.arg("none").arg(scene.path("mnt")).args([
            "-t",
            env!("CARGO_BIN_EXE_unionfs"),
            "-o",
            &options,
        ]);
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::read_to_string(scene.path("mnt/file")).unwrap(), "lower\n");
        assert!(umount(&scene.path("mnt")).status.success());
    }

    #[test]
    fn a_lower_may_be_the_mount_point_or_lie_above_it() {
        if cannot_mount() {
            return;
        }
        let scene = Scene::new();
        let lower = scene.path("lower");
        let program = env!("CARGO_BIN_EXE_unionfs");
        let output =
            run(Command::new(program).arg("-o").arg(format!("lowerdir={}", lower.display())).arg(&lower));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(fs::read_to_string(lower.join("file")).unwrap(), "lower\n");
        assert!(umount(&lower).status.success());

        let above = scene.dir.path();
        let mountpoint = scene.path("mnt");
        let output = run(Command::new(program)
            .arg("-o")
            .arg(format!("lowerdir={}", above.display()))
            .arg(&mountpoint));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let listing = run(Command::new("ls").arg("-l").arg(&mountpoint));
        assert!(listing.status.success(), "{}", text(&listing.stderr));
        assert!(!text(&listing.stdout).contains("mnt"), "{}", text(&listing.stdout));
    }
}
