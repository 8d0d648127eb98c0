use super::{block, launch};
use crate::machine::{Fault, FaultKind, Launch};
use crate::ptx;

fn fault(body: &str, threads: u32) -> Fault {
    launch(body, block(threads), &vec![0; 4 * threads as usize]).unwrap_err()
}

#[test]
fn an_access_past_the_end_names_its_place() {
    let body = "setp.eq.u32 %p1, %t, 33;\nmov.u32 %r1, 7;\n@%p1 st.global.u32 [%at+500], %r1;";
    let fault = fault(body, 64);
    assert_eq!(fault.kind, FaultKind::Address);
    for part in
        ["k, block [0, 0, 0], thread [33, 0, 0]", "st.global.u32", "where nothing is allocated"]
    {
        assert!(fault.message.contains(part), "{fault}");
    }
}

#[test]
fn addresses_of_nothing() {
    for body in [
        "mov.u64 %d0, 0;\nld.global.u32 %r1, [%d0];",
        "ld.shared.u32 %r1, [dynamic+4096];",
        "mov.u32 %r0, 0;\nld.shared.u32 %r1, [%r0];",
        ".local .align 4 .b8 l[8];\nmov.u64 %d0, l;\nld.local.u32 %r1, [%d0+16];",
        "cp.async.cg.shared.global [dynamic], [%in+4096], 16;",
    ] {
        assert_eq!(fault(body, 1).kind, FaultKind::Address, "{body}");
    }
}

#[test]
fn addresses_between() {
    for body in [
        "ld.global.u32 %r1, [%in+2];",
        "ld.global.v2.u32 {%r1, %r2}, [%in+4];",
        "ld.shared.u64 %d1, [dynamic+4];",
        "atom.global.add.u32 %r1, [%out+1], 1;",
    ] {
        assert_eq!(fault(body, 1).kind, FaultKind::Alignment, "{body}");
    }
}

/// Each thread writes its word, and reads that of the other end.
fn exchange(between: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    let last = 4 * (threads - 1);
    let body = format!(
        "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 2;\nadd.u32 %r2, %r0, %r1;\nsub.u32 %r3, {last}, %r1;\n\
         add.u32 %r3, %r0, %r3;\nst.shared.u32 [%r2], %t;\n{between}\nld.shared.u32 %r4, [%r3];\n\
         st.global.u32 [%at], %r4;"
    );
    launch(&body, block(threads), &vec![0; 4 * threads as usize])
}

#[test]
fn races() {
    assert_eq!(exchange("", 64).unwrap_err().kind, FaultKind::Race);
    assert_eq!(exchange("", 32).unwrap_err().kind, FaultKind::Race);
    assert_eq!(exchange("bar.warp.sync -1;", 64).unwrap_err().kind, FaultKind::Race);
    assert_eq!(exchange("bar.sync 0;", 64).unwrap()[0], 63);
    assert_eq!(exchange("bar.warp.sync -1;", 32).unwrap()[0], 31);
    // Read by one and written by another, and two writes.
    let start = "mov.u32 %r0, dynamic;\n@%p1 bra end;\nst.shared.u32 [%r0], 0;\nbar.sync 0;\n";
    let late = format!(
        "{start}ld.shared.u32 %r1, [%r0];\nsetp.eq.u32 %p2, %t, 5;\n@%p2 st.shared.u32 [%r0], 1;\nend:"
    );
    assert_eq!(fault(&late, 64).kind, FaultKind::Race);
    assert_eq!(fault(&format!("{start}st.shared.u32 [%r0], %t;\nend:"), 2).kind, FaultKind::Race);
    // All the same value, parts of a word, and atomics.
    let fine = format!(
        "{start}st.shared.u32 [%r0], 5;\nbar.sync 0;\natom.shared.add.u32 %r1, [%r0], 1;\nend:"
    );
    assert!(launch(&fine, block(64), &[0; 256]).is_ok());
    let bytes = "mov.u32 %r0, dynamic;\nadd.u32 %r0, %r0, %t;\nst.shared.u8 [%r0], %t;\nld.shared.u8 %r1, [%r0];";
    assert!(launch(bytes, block(64), &[0; 256]).is_ok());
}

#[test]
fn a_copy_that_was_not_waited_for_races() {
    let body = |wait: &str| {
        format!(
            "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 4;\nadd.u32 %r1, %r0, %r1;\n\
             cp.async.cg.shared.global [%r1], [%from], 16;\ncp.async.commit_group;\n{wait}\n\
             ld.shared.u32 %r2, [%r0];\nst.global.u32 [%at], %r2;"
        )
    };
    let input: Vec<_> = (0..256).collect();
    let run = |wait: &str| launch(&body(wait), block(64), &input);
    assert_eq!(run("cp.async.wait_group 0;").unwrap_err().kind, FaultKind::Race);
    assert_eq!(run("cp.async.wait_group 0;\nbar.sync 0;").unwrap()[4], 0);
    // Not landed: what was there before, which is poison.
    assert_eq!(run("bar.sync 0;").unwrap()[4], u32::MAX);
}

#[test]
fn deadlocks() {
    // The second warp comes to another barrier; and lanes that never come to a shuffle.
    for body in [
        "setp.gt.u32 %p1, %t, 31;\n@%p1 bra other;\nbar.sync 0;\nbra.uni end;\nother: bar.sync 1;\nend:",
        "setp.gt.u32 %p1, %t, 15;\n@%p1 bra wait;\nshfl.sync.idx.b32 %r1, %t, 0, 31, -1;\nwait: bar.sync 0;",
    ] {
        let fault = fault(body, 64);
        assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
        assert!(fault.message.contains("line "), "{fault}");
    }
}

#[test]
fn traps_and_launches_that_cannot_be() {
    assert_eq!(fault("trap;", 1).kind, FaultKind::Instruction);
    let odd = Launch { blocks: [3, 1, 1], cluster: [2, 1, 1], ..block(1) };
    assert_eq!(launch("", odd, &[0; 4]).unwrap_err().kind, FaultKind::Instruction);
    assert_eq!(fault("", 2048).kind, FaultKind::Instruction);
}

#[test]
fn what_is_not_known_is_an_error_that_names_it() {
    for (body, named) in [
        ("frob.u32 %r0, %r1;", "frob"),
        ("add.frob.u32 %r0, %r1, %r2;", ".frob"),
        ("tcgen05.fence::before_thread_sync;", "tcgen05"),
        ("add.u32 %r0, %nobody, 1;", "%nobody"),
        ("bra nowhere;", "nowhere"),
        ("add.f32 %f0, %f1, 1;", "integer"),
        ("add.u32 %r0, %d1, 1;", "add.u32"),
    ] {
        let error = ptx::parse(&super::text(body)).unwrap_err();
        assert!(error.contains(named), "{error}");
        assert!(named == "nowhere" || error.starts_with("line 2"), "{error}");
    }
}
