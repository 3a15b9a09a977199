//! The assembler of the filter program: a binary search over runs of equal actions. Pure.

use libc::sock_filter;

use super::Action;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`; the low half of an argument comes first on a little-endian machine.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_IF_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K

const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
const ERRNO: u32 = 0x0005_0000; // SECCOMP_RET_ERRNO
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

/// The CLONE_NEW* flags that make namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// `AF_ALG`, whose drivers had holes, and `AF_VSOCK`, which reaches the hypervisor.
const REFUSED_FAMILIES: [u32; 2] = [38, 40];

/// PER_LINUX, PER_LINUX32, UNAME26, both, and "only ask".
const PERSONALITIES: [u32; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];

/// A run of call numbers that get the same action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    action: Action,
}

/// Assembles the program for a table of actions; numbers beyond the table answer ENOSYS.
pub(super) fn assemble(table: &[Action]) -> Vec<sock_filter> {
    // Another architecture has other numbers (32-bit programs): none of its calls is known here.
    let mut program =
        vec![load(OFFSET_ARCH), branch(JUMP_IF_EQUAL, AUDIT_ARCH, 1, 0), give(ENOSYS), load(OFFSET_NR)];
    program.extend(search(&runs(table)));
    program
}

fn runs(table: &[Action]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (action, number) in table.iter().copied().chain([Action::Enosys]).zip(0_u32..) {
        if runs.last().is_none_or(|run| run.action != action) {
            runs.push(Run { first: number, action });
        }
    }
    runs
}

/// The code that finds the run of the loaded number. Every path through it ends in a return.
fn search(runs: &[Run]) -> Vec<sock_filter> {
    let (below, above) = runs.split_at(runs.len() / 2);
    let Some(pivot) = above.first() else { return vec![give(ENOSYS)] };
    if below.is_empty() {
        return leaf(pivot.action);
    }
    let below = search(below);
    // A conditional jump reaches 255 instructions only, so a long jump stands behind it.
    let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
    let mut code = vec![
        branch(JUMP_IF_AT_LEAST, pivot.first, 0, 1),
        sock_filter { code: JUMP, jt: 0, jf: 0, k: distance },
    ];
    code.extend(below);
    code.extend(search(above));
    code
}

fn leaf(action: Action) -> Vec<sock_filter> {
    match action {
        Action::Allow => vec![give(ALLOW)],
        Action::Eperm => vec![give(EPERM)],
        Action::Enosys => vec![give(ENOSYS)],
        Action::CheckClone => {
            vec![load(OFFSET_ARG0), branch(JUMP_IF_ANY_BIT, CLONE_NAMESPACES, 0, 1), give(EPERM), give(ALLOW)]
        }
        Action::CheckSocket => {
            let [crypto, vsock] = REFUSED_FAMILIES;
            vec![
                load(OFFSET_ARG0),
                branch(JUMP_IF_EQUAL, crypto, 1, 0),
                branch(JUMP_IF_EQUAL, vsock, 0, 1),
                give(EPERM),
                give(ALLOW),
            ]
        }
        Action::CheckPersonality => {
            let mut code = vec![load(OFFSET_ARG0)];
            for value in PERSONALITIES {
                code.push(branch(JUMP_IF_EQUAL, value, 0, 1));
                code.push(give(ALLOW));
            }
            code.push(give(EPERM));
            code
        }
    }
}

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

const fn give(value: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: value }
}

const fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code, jt: if_true, jf: if_false, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let step = program[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    accumulator = [(OFFSET_NR, number), (OFFSET_ARCH, arch), (OFFSET_ARG0, argument)]
                        .into_iter()
                        .find(|(offset, _)| *offset == step.k)
                        .unwrap()
                        .1
                }
                RETURN => return step.k,
                JUMP => at += step.k as usize,
                JUMP_IF_EQUAL => at += jump(accumulator == step.k),
                JUMP_IF_AT_LEAST => at += jump(accumulator >= step.k),
                JUMP_IF_ANY_BIT => at += jump(accumulator & step.k != 0),
                code => panic!("unknown instruction {code}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_own_action() {
        let plain = [Action::Allow, Action::Eperm, Action::Enosys];
        let table: Vec<Action> = (0..500_usize).map(|number| plain[(number * number / 7) % 3]).collect();
        let program = assemble(&table);
        for (number, action) in (0_u32..).zip(&table) {
            let want = leaf(*action)[0].k;
            assert_eq!(run(&program, AUDIT_ARCH, number, 0), want, "{number}");
        }
        for number in [500, 501, 0x4000_0000, u32::MAX] {
            assert_eq!(run(&program, AUDIT_ARCH, number, 0), ENOSYS, "{number}");
        }
        assert_eq!(run(&program, AUDIT_ARCH ^ 1, 0, 0), ENOSYS);
    }

    #[test]
    fn arguments_decide_where_they_are_checked() {
        for (action, argument, want) in [
            (Action::CheckClone, 0x0120_0011, ALLOW),
            (Action::CheckClone, 0x1000_0000, EPERM),
            (Action::CheckClone, 0x0002_0000, EPERM),
            (Action::CheckSocket, 1, ALLOW),
            (Action::CheckSocket, 38, EPERM),
            (Action::CheckSocket, 40, EPERM),
            (Action::CheckPersonality, 0x20008, ALLOW),
            (Action::CheckPersonality, 0xffff_ffff, ALLOW),
            (Action::CheckPersonality, 0x0040_0000, EPERM),
        ] {
            let program = assemble(&[Action::Allow, action, Action::Allow]);
            assert_eq!(run(&program, AUDIT_ARCH, 1, argument), want, "{action:?} {argument:#x}");
        }
    }
}
