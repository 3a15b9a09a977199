//! The numbers of the requests.

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum Opcode {
            $($(#[$doc])* $name,)*
        }

        impl Opcode {
            /// Every opcode this codec knows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the opcode with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Returns the name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Returns the opcode of this name, whatever its case and underscores.
            pub fn named(name: &str) -> Option<Self> {
                let letters = || name.bytes().filter(|byte| *byte != b'_');
                Self::ALL.iter().copied().find(|opcode| {
                    letters().map(|byte| byte.to_ascii_lowercase()).eq(opcode
                        .name()
                        .bytes()
                        .map(|byte| byte.to_ascii_lowercase()))
                })
            }

            /// Returns the number on the wire.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Getlk = 31,
    Setlk = 32,
    Setlkw = 33,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Bmap = 37,
    Destroy = 38,
    Ioctl = 39,
    Poll = 40,
    NotifyReply = 41,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    Setupmapping = 48,
    Removemapping = 49,
    Syncfs = 50,
    Tmpfile = 51,
    Statx = 52,
    CopyFileRange64 = 53,
}

impl Opcode {
    /// Returns the size of the fixed argument that precedes names and data.
    ///
    /// SETXATTR's grows to 16 where `SETXATTR_EXT` was negotiated; INIT's varies with the kernel and counts as 0 here.
    pub const fn fixed_len(self, setxattr_ext: bool) -> usize {
        match self {
            Self::Lookup
            | Self::Readlink
            | Self::Symlink
            | Self::Unlink
            | Self::Rmdir
            | Self::Statfs
            | Self::Removexattr
            | Self::Init
            | Self::Destroy => 0,
            Self::Forget
            | Self::Mkdir
            | Self::Rename
            | Self::Link
            | Self::Open
            | Self::Opendir
            | Self::Access
            | Self::Interrupt
            | Self::BatchForget
            | Self::Getxattr
            | Self::Listxattr
            | Self::Syncfs => 8,
            Self::Setxattr => {
                if setxattr_ext {
                    16
                } else {
                    8
                }
            }
            Self::Getattr
            | Self::Mknod
            | Self::Fsync
            | Self::Fsyncdir
            | Self::Create
            | Self::Tmpfile
            | Self::Bmap
            | Self::Rename2 => 16,
            Self::Release | Self::Releasedir | Self::Flush | Self::Poll | Self::Lseek | Self::Statx => 24,
            Self::Ioctl | Self::Fallocate => 32,
            Self::Read | Self::Readdir | Self::Readdirplus | Self::Write | Self::NotifyReply => 40,
            Self::Setupmapping => 40,
            Self::Getlk | Self::Setlk | Self::Setlkw => 48,
            Self::CopyFileRange | Self::CopyFileRange64 => 56,
            Self::Setattr => 88,
            Self::Removemapping => 4,
        }
    }
}
