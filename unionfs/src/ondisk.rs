//! The marks by which layers say "deleted", "opaque" and "moved": the formats of kernel overlayfs, of
//! fuse-overlayfs and of OCI layers. Pure: no system call is made here.

pub mod acl;
pub mod capability;
pub(crate) mod catalog;
pub mod metacopy;
pub mod numbers;
pub mod origin;
pub mod record;
pub mod sidecar;
pub mod store;
pub mod unfinished;

/// Prefix of a name that hides the rest of the name in the layers below (OCI image layers, AUFS).
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// File that makes its directory opaque (OCI image layers, AUFS).
pub const OPAQUE_FILE: &[u8] = b".wh..wh..opq";
/// Prefix of names that AUFS kept for itself; they mean nothing and are not shown.
pub const RESERVED_PREFIX: &[u8] = b".wh..wh.";
/// Value of an `opaque` attribute that hides what is below.
pub const OPAQUE_YES: u8 = b'y';
/// Value of an `opaque` attribute of a directory that may hold attribute whiteouts.
pub const OPAQUE_XATTR_WHITEOUTS: u8 = b'x';
/// Longest absolute redirect that kernel overlayfs follows, in bytes (module parameter `redirect_max`).
pub const REDIRECT_MAX: usize = 256;

/// Which attribute namespace holds the marks of this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: what the kernel's `userxattr` option uses.
    User,
}

impl Namespace {
    /// Returns the full name of the mark `suffix`.
    pub fn name(self, suffix: &str) -> Vec<u8> {
        let prefix = match self {
            Self::Trusted => TRUSTED_OVERLAY,
            Self::User => USER_OVERLAY,
        };
        [prefix, suffix.as_bytes()].concat()
    }
}

const TRUSTED_OVERLAY: &[u8] = b"trusted.overlay.";
const USER_OVERLAY: &[u8] = b"user.overlay.";
const OVERLAY_PREFIXES: [&[u8]; 2] = [TRUSTED_OVERLAY, USER_OVERLAY];
const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.";
const SECURITY_FUSE_OVERLAYFS: &[u8] = b"security.fuseoverlayfs.";
/// What one level of nesting adds to a mark that a user sets through the mount.
const ESCAPE: &[u8] = b"overlay.";

/// The attributes by which any of the known programs marks a directory opaque.
pub const OPAQUE_XATTRS: [&[u8]; 3] =
    [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];

/// What a name in a layer's directory is, judged by its bytes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameClass<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh.NAME`: hides NAME in the layers below.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: its directory is opaque.
    Opaque,
    /// Another `.wh..wh.*` name, or `.wh.` alone: not shown, without meaning.
    Reserved,
}

/// Classifies a name.
pub fn classify(name: &[u8]) -> NameClass<'_> {
    let Some(target) = name.strip_prefix(WHITEOUT_PREFIX) else { return NameClass::Plain };
    if name == OPAQUE_FILE {
        NameClass::Opaque
    } else if name.starts_with(RESERVED_PREFIX) || target.is_empty() {
        NameClass::Reserved
    } else {
        NameClass::Whiteout(target)
    }
}

/// Returns whether a name is one that an NFS client gives a file that is open when it is removed or replaced: `.nfs`, the
/// number of the file (16 digits) and a count (8).
pub fn is_silly_name(name: &[u8]) -> bool {
    name.strip_prefix(b".nfs").is_some_and(|digits| {
        digits.len() == 24 && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Returns `.wh.NAME`.
pub fn whiteout_name(name: &[u8]) -> Vec<u8> {
    [WHITEOUT_PREFIX, name].concat()
}

/// Returns whether the attribute is a mark of a union and so is neither shown nor copied up.
pub fn is_private_xattr(name: &[u8]) -> bool {
    mark_of(name).is_some() || is_fuse_overlayfs(name)
}

/// Returns which mark an attribute is, in either namespace; `None` for what is no mark of kernel overlayfs' kind.
pub fn mark_of(name: &[u8]) -> Option<&[u8]> {
    let overlay = name.strip_prefix(TRUSTED_OVERLAY).or_else(|| name.strip_prefix(USER_OVERLAY));
    overlay.filter(|rest| !rest.starts_with(ESCAPE))
}

/// Returns under which name an attribute that a user names is stored: marks of an overlay that is mounted inside
/// this one get one more `overlay.`, as in the kernel.
pub fn escape_xattr(name: &[u8]) -> Vec<u8> {
    for prefix in OVERLAY_PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix) {
            return [prefix, ESCAPE, rest].concat();
        }
    }
    name.to_vec()
}

/// Returns the name to show for a stored attribute, or `None` if it is private.
pub fn unescape_xattr(name: &[u8]) -> Option<Vec<u8>> {
    for prefix in OVERLAY_PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix) {
            return rest.strip_prefix(ESCAPE).map(|inner| [prefix, inner].concat());
        }
    }
    (!is_fuse_overlayfs(name)).then(|| name.to_vec())
}

fn is_fuse_overlayfs(name: &[u8]) -> bool {
    name.starts_with(FUSE_OVERLAYFS) || name.starts_with(SECURITY_FUSE_OVERLAYFS)
}

/// Where a directory with a redirect goes on in the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// Another name in the same parent.
    Sibling(Vec<u8>),
    /// A path from the root of each layer below; the components in order.
    Absolute(Vec<Vec<u8>>),
}

/// Why a redirect's value cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRedirect {
    /// Empty, with an empty component, a slash at the end, or relative with a slash: EINVAL.
    Malformed,
    /// A `.` or `..` component: EACCES.
    Climbs,
}

/// Parses the value of a `redirect` mark by the rules of kernel overlayfs.
pub fn parse_redirect(value: &[u8]) -> Result<Redirect, BadRedirect> {
    let Some(path) = value.strip_prefix(b"/") else {
        if value.is_empty() || value.contains(&b'/') {
            return Err(BadRedirect::Malformed);
        }
        return if value == b"." || value == b".." {
            Err(BadRedirect::Climbs)
        } else {
            Ok(Redirect::Sibling(value.to_vec()))
        };
    };
    let components: Vec<Vec<u8>> = path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
    if components.iter().any(Vec::is_empty) {
        return Err(BadRedirect::Malformed);
    }
    if components.iter().any(|c| c == b"." || c == b"..") {
        return Err(BadRedirect::Climbs);
    }
    Ok(Redirect::Absolute(components))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_nfs_client_are_known() {
        assert!(
            is_silly_name(b".nfs000000000000051100000019") && is_silly_name(b".nfsfedcba98765432100000abcd")
        );
        for name in [
            &b".nfs"[..],
            b".nfs00000000000005110000001",
            b".nfs0000000000000511000000199",
            b".nfs00000000000005110000001G",
        ] {
            assert!(!is_silly_name(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn names_are_classified_by_the_oci_rules() {
        for (name, want) in [
            (&b"a"[..], NameClass::Plain),
            (b".wh", NameClass::Plain),
            (b".wh.a", NameClass::Whiteout(b"a")),
            (b".wh..wh..opq", NameClass::Opaque),
            (b".wh..wh.aufs", NameClass::Reserved),
            (b".wh.", NameClass::Reserved),
        ] {
            assert_eq!(classify(name), want, "{name:?}");
        }
    }

    #[test]
    fn marks_of_a_nested_overlay_gain_and_lose_one_level() {
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"user.overlay.overlay.opaque",
            b"user.x",
            b"security.capability",
        ] {
            let stored = escape_xattr(name);
            assert!(!is_private_xattr(&stored), "{stored:?}");
            assert_eq!(unescape_xattr(&stored).as_deref(), Some(name));
        }
        for private in
            [&b"trusted.overlay.redirect"[..], b"user.overlay.opaque", b"user.fuseoverlayfs.origin"]
        {
            assert!(is_private_xattr(private));
            assert_eq!(unescape_xattr(private), None);
        }
    }

    #[test]
    fn redirects_are_accepted_and_refused_as_by_the_kernel() {
        assert_eq!(parse_redirect(b"a"), Ok(Redirect::Sibling(b"a".to_vec())));
        assert_eq!(parse_redirect(b"/a/b"), Ok(Redirect::Absolute(vec![b"a".to_vec(), b"b".to_vec()])));
        for bad in [&b""[..], b"a/b", b"/", b"/a//b", b"/a/", b"a/"] {
            assert_eq!(parse_redirect(bad), Err(BadRedirect::Malformed), "{bad:?}");
        }
        for bad in [&b".."[..], b".", b"/a/../b", b"/."] {
            assert_eq!(parse_redirect(bad), Err(BadRedirect::Climbs), "{bad:?}");
        }
    }
}
