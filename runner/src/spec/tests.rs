use super::*;

#[test]
fn layers_are_split_at_colons() {
    assert_eq!(parse_rootfs("/a:/b".as_ref()).unwrap(), [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert!(parse_rootfs("/a:".as_ref()).is_err());
    assert!(parse_rootfs("".as_ref()).is_err());
}

#[test]
fn volumes_need_two_absolute_paths() {
    let bind = parse_bind("/a:/b:ro".as_ref()).unwrap();
    assert_eq!(bind, Bind { source: "/a".into(), target: "/b".into(), read_only: true });
    assert!(!parse_bind("/a:/b".as_ref()).unwrap().read_only);
    for bad in ["/a", "a:/b", "/a:b", "/a:/b:zz", "/a:/b:ro:x", ":"] {
        assert!(parse_bind(bad.as_ref()).is_err(), "{bad}");
    }
}

#[test]
fn tmpfs_options_are_parsed() {
    let plain = parse_tmpfs("/t".as_ref()).unwrap();
    assert_eq!((plain.size, plain.mode), (None, 0o1777));
    let full = parse_tmpfs("/t:size=1m,mode=700".as_ref()).unwrap();
    assert_eq!((full.size, full.mode), (Some(1 << 20), 0o700));
    for bad in ["t", "/t:size=x", "/t:mode=9", "/t:mode=17777", "/t:what"] {
        assert!(parse_tmpfs(bad.as_ref()).is_err(), "{bad}");
    }
}

#[test]
fn sizes_are_powers_of_1024() {
    for (text, want) in [("64m", 64 << 20), ("1G", 1 << 30), ("4096", 4096), ("2kb", 2048), ("7b", 7)] {
        assert_eq!(parse_size(text).unwrap(), want, "{text}");
    }
    for bad in ["", "m", "1.5m", "-1", "1t", "99999999999g", "0x10"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
    assert!(parse_memory("1k").is_err());
}

#[test]
fn processors_are_counted_in_thousandths() {
    for (text, want) in [("0.5", 500), ("2", 2000), (".25", 250), ("1.", 1000), ("0.01", 10)] {
        assert_eq!(parse_cpus(text).unwrap(), want, "{text}");
    }
    for bad in ["", ".", "0", "-1", "1e3", "0.001", "1.2345", "half"] {
        assert!(parse_cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn users_are_names_or_strict_numbers() {
    let user = |text: &str| parse_user(text.as_ref());
    assert_eq!(user("0").unwrap().user, Some(Id::Number(0)));
    assert_eq!(user("1x").unwrap().user, Some(Id::Name(b"1x".to_vec())));
    assert_eq!(user("a:5").unwrap().group, Some(Id::Number(5)));
    for bad in ["", "-1", ":5", "4294967296", "4294967295", "a:", "a:b:c"] {
        assert!(user(bad).is_err(), "{bad}");
    }
}

#[test]
fn names_follow_dockers_rule() {
    for (name, valid) in
        [("ab", true), ("a.b-c_d", true), ("a", false), ("-ab", false), ("a/b", false), ("", false)]
    {
        assert_eq!(parse_name(name).is_ok(), valid, "{name}");
    }
    for (name, valid) in [("web-1", true), ("a.b", true), ("", false), ("a b", false), ("-x", false)] {
        assert_eq!(parse_hostname(name).is_ok(), valid, "{name}");
    }
}

#[test]
fn the_last_value_of_a_variable_stays() {
    let env = environment("h", true, &["A=1".into(), "PATH=/x".into(), "A=2".into()]);
    assert_eq!(value_of(&env, "A"), Some("2".as_ref()));
    assert_eq!(value_of(&env, "PATH"), Some("/x".as_ref()));
    assert_eq!(value_of(&env, "TERM"), Some("xterm".as_ref()));
    assert_eq!(env.len(), 4);
    assert_eq!(value_of(&env, "B"), None);
}
