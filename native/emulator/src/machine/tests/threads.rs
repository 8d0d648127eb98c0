use super::{block, launch};
use crate::machine::{FaultKind, Launch};

/// What each of so many threads leaves in its first word.
fn firsts(body: &str, threads: u32) -> Vec<u32> {
    let out = launch(body, block(threads), &vec![0; 4 * threads as usize]).unwrap();
    out.iter().step_by(4).copied().collect()
}

#[test]
fn lanes_part_and_meet_again() {
    // Every lane loops as often as it is high, and then one ballot has them all.
    let body = "mov.u32 %r0, 0;\nmov.u32 %r1, 0;\n\
        loop: setp.ge.u32 %p1, %r0, %t;\n@%p1 bra done;\n\
        and.b32 %r2, %r0, 1;\nsetp.eq.u32 %p2, %r2, 0;\n@%p2 bra even;\n\
        add.u32 %r1, %r1, 10;\nbra.uni next;\n\
        even: add.u32 %r1, %r1, 1;\n\
        next: add.u32 %r0, %r0, 1;\nbra.uni loop;\n\
        done: activemask.b32 %r3;\n\
        st.global.v2.u32 [%at], {%r1, %r3};";
    let out = launch(body, block(40), &[0; 160]).unwrap();
    for (t, words) in out.chunks(4).enumerate() {
        let t = t as u32;
        assert_eq!(words[0], t.div_ceil(2) + t / 2 * 10);
        assert_eq!(words[1], if t < 32 { u32::MAX } else { 0xff });
    }
}

#[test]
fn functions_are_called_by_some_lanes() {
    // In a text of its own: a function stands before the kernel.
    let text = super::text(
        "mov.u32 %r1, 5;\nsetp.lt.u32 %p1, %t, 7;\n@%p1 bra end;\n\
         {\n.param .b32 p0;\nst.param.b32 [p0+0], %t;\n.param .align 8 .b8 back[16];\n\
         call.uni (back), double, (p0);\nld.param.b32 %r1, [back+0];\nld.param.b64 %d1, [back+8];\n}\n\
         cvt.u32.u64 %r2, %d1;\nadd.u32 %r1, %r1, %r2;\n\
         end: st.global.u32 [%at], %r1;",
    );
    let function = ".func (.param .align 8 .b8 result[16]) double(.param .b32 x)\n{\n\
        .reg .b32 %r<3>;\n.reg .b64 %d<2>;\n.reg .pred %p<2>;\nld.param.u32 %r1, [x];\n\
        setp.lt.u32 %p1, %r1, 20;\nadd.u32 %r2, %r1, %r1;\nst.param.b32 [result+0], %r2;\n\
        mov.u64 %d1, 1000;\nst.param.b64 [result+8], %d1;\n@%p1 ret;\n\
        mov.u64 %d1, 2000;\nst.param.b64 [result+8], %d1;\nret;\n}\n";
    let text = text.replace(".extern .shared", &format!("{function}.extern .shared"));
    let module = crate::ptx::parse(&text).unwrap();
    let mut out = vec![0u128; 32];
    let memory = crate::memory::Memory::default();
    let at = out.as_mut_ptr() as u64;
    memory.insert(at, 512);
    let params = [at.to_le_bytes(), at.to_le_bytes()].concat();
    crate::machine::run(&module.kernels["k"], &Launch { params, ..block(32) }, &memory).unwrap();
    for (t, &got) in std::hint::black_box(&out).iter().enumerate() {
        let t = t as u128;
        let far = if t < 20 { 1000 } else { 2000 };
        assert_eq!(got, if t < 7 { 5 } else { 2 * t + far });
    }
}

#[test]
fn shuffles() {
    let run = |mode: &str, by: &str, c: &str| {
        firsts(
            &format!(
                "add.u32 %r0, %t, 100;\nshfl.sync.{mode}.b32 %r1|%p1, %r0, {by}, {c}, -1;\n@!%p1 add.u32 %r1, %r1, 1000;\nst.global.u32 [%at], %r1;"
            ),
            32,
        )
    };
    for (t, got) in run("bfly", "5", "31").into_iter().enumerate() {
        assert_eq!(got, 100 + (t as u32 ^ 5));
    }
    for (t, got) in run("up", "3", "0").into_iter().enumerate() {
        assert_eq!(got, if t < 3 { 1100 + t as u32 } else { 97 + t as u32 });
    }
    for (t, got) in run("down", "3", "31").into_iter().enumerate() {
        assert_eq!(got, if t > 28 { 1100 + t as u32 } else { 103 + t as u32 });
    }
    // In halves of a warp.
    for (t, got) in run("idx", "2", "0x101f").into_iter().enumerate() {
        assert_eq!(got, 102 + (t as u32 & 16));
    }
    for (t, got) in run("down", "9", "0x100f").into_iter().enumerate() {
        let t = t as u32;
        assert_eq!(got, if t % 16 > 6 { 1100 + t } else { 109 + t });
    }
}

#[test]
fn votes_and_matches_of_the_lanes_that_a_mask_names() {
    let body = "setp.lt.u32 %p1, %t, 8;\n@%p1 bra low;\n\
        setp.gt.u32 %p2, %t, 20;\nvote.sync.ballot.b32 %r0, %p2, 0xffffff00;\nbra.uni end;\n\
        low: and.b32 %r1, %t, 3;\nmatch.any.sync.b32 %r0, %r1, 0xff;\n\
        end: redux.sync.add.s32 %r2, %t, -1;\n\
        vote.sync.all.pred %p3, %p1, -1;\nselp.u32 %r3, 1, 0, %p3;\n\
        st.global.v4.u32 [%at], {%r0, %r2, %r3, %r3};";
    let out = launch(body, block(32), &[0; 128]).unwrap();
    for (t, words) in out.chunks(4).enumerate() {
        let low = 0x11 << (t % 4);
        assert_eq!(words[0], if t < 8 { low } else { u32::MAX << 21 });
        assert_eq!(words[1..3], [31 * 16, 0]);
    }
}

#[test]
fn a_barrier_orders_the_warps_of_a_block() {
    // Values go the other way round through shared memory, twice.
    let body = "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 2;\nadd.u32 %r2, %r0, %r1;\n\
        sub.u32 %r3, 508, %r1;\nadd.u32 %r3, %r0, %r3;\n\
        mul.lo.u32 %r4, %t, %t;\nst.shared.u32 [%r2], %r4;\nbar.sync 0;\n\
        ld.shared.u32 %r5, [%r3];\nbar.sync 0;\n\
        add.u32 %r5, %r5, 1;\nst.shared.u32 [%r2], %r5;\nbar.sync 0;\n\
        ld.shared.u32 %r6, [%r3];\nst.global.u32 [%at], %r6;";
    for (t, got) in firsts(body, 128).into_iter().enumerate() {
        assert_eq!(got as usize, t * t + 1);
    }
}

#[test]
fn threads_that_have_ended_are_not_waited_for() {
    let body = "setp.gt.u32 %p1, %t, 40;\n@%p1 ret;\nbar.sync 0;\nmov.u32 %r1, 3;\nst.global.u32 [%at], %r1;";
    let got = firsts(body, 64);
    assert!(got[..41].iter().all(|&x| x == 3) && got[41..].iter().all(|&x| x == 0xdddd_dddd));
}

#[test]
fn some_warps_meet_at_a_barrier_of_their_own() {
    let body = "shr.u32 %r1, %t, 5;\nsetp.eq.u32 %p1, %r1, 0;\nmov.u32 %r0, dynamic;\n\
        @%p1 bra first;\nsetp.eq.u32 %p2, %r1, 2;\n@%p2 bra end;\n\
        bar.sync 1, 64;\nld.shared.u32 %r2, [%r0];\nst.global.u32 [%at], %r2;\nbra.uni end;\n\
        first: setp.eq.u32 %p3, %t, 0;\n@%p3 st.shared.u32 [%r0], 77;\nbar.arrive 1, 64;\n\
        end: bar.sync 0;";
    let got = firsts(body, 96);
    assert!(got[32..64].iter().all(|&x| x == 77));
}

#[test]
fn the_halves_of_a_block_meet_at_barriers_whose_number_is_in_a_register() {
    // Each half turns its own words round, the first one once more often than the second.
    let body = "shr.u32 %r1, %t, 7;\nadd.u32 %r2, %r1, 1;\nmov.u32 %r0, dynamic;\n\
        shl.b32 %r3, %r1, 9;\nadd.u32 %r0, %r0, %r3;\nand.b32 %r4, %t, 127;\nshl.b32 %r4, %r4, 2;\n\
        add.u32 %r5, %r0, %r4;\nsub.u32 %r6, 508, %r4;\nadd.u32 %r6, %r0, %r6;\n\
        mov.u32 %r7, %t;\nadd.u32 %r8, %r1, 1;\n\
        again: st.shared.u32 [%r5], %r7;\nbar.sync %r2, 128;\nld.shared.u32 %r7, [%r6];\n\
        bar.sync %r2, 128;\nadd.u32 %r7, %r7, 1000;\nadd.u32 %r8, %r8, 1;\n\
        setp.lt.u32 %p1, %r8, 3;\n@%p1 bra again;\nbar.sync 0;\nst.global.u32 [%at], %r7;";
    for (t, got) in firsts(body, 256).into_iter().enumerate() {
        let want = if t < 128 { 2000 + t } else { 1128 + 255 - t };
        assert_eq!(got as usize, want);
    }
}

#[test]
fn copies_land_when_they_are_waited_for() {
    let body = "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 5;\nadd.u32 %r0, %r0, %r1;\n\
        st.shared.v4.u32 [%r0], {1, 1, 1, 1};\nst.shared.v4.u32 [%r0+16], {1, 1, 1, 1};\n\
        cp.async.cg.shared.global [%r0], [%from], 16, 16;\ncp.async.commit_group;\n\
        cp.async.ca.shared.global [%r0+16], [%from], 16, 4;\ncp.async.commit_group;\n\
        ld.shared.u32 %r2, [%r0];\ncp.async.wait_group 1;\nld.shared.u32 %r3, [%r0+4];\n\
        ld.shared.u32 %r4, [%r0+16];\ncp.async.wait_all;\nld.shared.v2.u32 {%r5, %r6}, [%r0+16];\n\
        add.u32 %r5, %r5, %r6;\nst.global.v4.u32 [%at], {%r2, %r3, %r4, %r5};";
    let input: Vec<_> = (0..128).map(|i| 1000 + i).collect();
    for (t, words) in launch(body, block(32), &input).unwrap().chunks(4).enumerate() {
        let from = 1000 + 4 * t as u32;
        // The second copy has four bytes and zeros.
        assert_eq!(*words, [1, from + 1, 1, from]);
    }
}

#[test]
fn copies_of_a_few_bytes_or_of_none() {
    // Odd threads copy nothing, from where nothing is.
    let body = "mov.u32 %r0, dynamic;\nshl.b32 %r1, %t, 4;\nadd.u32 %r0, %r0, %r1;\n\
        st.shared.v4.u32 [%r0], {1, 1, 1, 1};\nand.b32 %r1, %t, 1;\nsetp.eq.u32 %p1, %r1, 0;\n\
        selp.b32 %r2, 4, 0, %p1;\nselp.b32 %r3, 8, 0, %p1;\nselp.b64 %d0, %from, 1, %p1;\n\
        cp.async.ca.shared.global [%r0], [%d0], 8, %r3;\n\
        cp.async.ca.shared.global [%r0+8], [%d0+4], 4, %r2;\n\
        cp.async.commit_group;\ncp.async.wait_group 0;\n\
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r0];\nst.global.v4.u32 [%at], {%r4, %r5, %r6, %r7};";
    let input: Vec<_> = (0..128).map(|i| 1000 + i).collect();
    for (t, words) in launch(body, block(32), &input).unwrap().chunks(4).enumerate() {
        let from = 1000 + 4 * t as u32;
        let want = if t % 2 == 0 { [from, from + 1, from + 1, 1] } else { [0, 0, 0, 1] };
        assert_eq!(*words, want);
    }
}

#[test]
fn what_is_written_in_halves_is_polled_as_a_whole() {
    // The first block's warp polls until no word is zero; the second block writes, in two goes.
    let body = "mov.u32 %r0, %ctaid.x;\nsetp.ne.u32 %p1, %r0, 0;\nadd.u32 %r1, %t, 1;\n@%p1 bra write;\n\
        again: ld.relaxed.gpu.global.v4.u32 {%r2, %r3, %r4, %r5}, [%from];\n\
        min.u32 %r6, %r2, %r3;\nmin.u32 %r7, %r4, %r5;\nmin.u32 %r6, %r6, %r7;\n\
        setp.eq.u32 %p2, %r6, 0;\n@%p2 bra again;\n\
        st.global.v4.u32 [%at], {%r5, %r4, %r3, %r2};\nbra.uni end;\n\
        write: add.u32 %r2, %r1, 100;\nst.relaxed.gpu.global.v2.u32 [%from+8], {%r1, %r2};\n\
        fence.acq_rel.gpu;\nst.relaxed.gpu.global.v2.u32 [%from], {%r2, %r1};\nend:";
    let all = Launch { blocks: [2, 1, 1], cooperative: true, ..block(32) };
    for (t, words) in launch(body, all, &[0; 128]).unwrap().chunks(4).enumerate() {
        let t = t as u32 + 1;
        assert_eq!(*words, [t + 100, t, t, t + 100]);
    }
}

#[test]
fn all_blocks_of_a_cooperative_launch_are_in_progress() {
    // Each waits for the ones behind it: the last block counts first.
    let body = "mov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %nctaid.x;\nsub.u32 %r1, %r1, 1;\nsub.u32 %r1, %r1, %r0;\n\
        again: ld.relaxed.gpu.global.u32 %r2, [%in];\nsetp.ne.u32 %p1, %r2, %r1;\n@%p1 bra again;\n\
        atom.global.add.u32 %r3, [%in], 1;\n\
        mul.wide.u32 %d0, %r0, 4;\nadd.s64 %d0, %d0, %out;\nst.global.u32 [%d0], %r3;";
    let all = Launch { blocks: [8, 1, 1], cooperative: true, ..block(1) };
    let out = launch(body, all, &[0; 8]).unwrap();
    assert_eq!(out, [7, 6, 5, 4, 3, 2, 1, 0]);
}

#[test]
fn atomics() {
    let body = "mov.u32 %r0, dynamic;\nsetp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [%r0], 5;\nbar.sync 0;\n\
        atom.shared.add.u32 %r1, [%r0], 2;\nred.global.max.s32 [%out+12], %t;\n\
        atom.global.cas.b32 %r2, [%out+28], 0xdddddddd, %t;\nbar.sync 0;\n\
        ld.shared.u32 %r3, [%r0];\nst.global.u32 [%at], %r3;\n";
    let out = launch(body, block(64), &[0; 256]).unwrap();
    assert!(out.iter().step_by(4).all(|&x| x == 5 + 128));
    assert_eq!((out[3], out[7]), (63, 0));
}

#[test]
fn a_cluster_reads_and_counts_in_the_others_memory() {
    // A block of rank r sends its rank to the next, counted at an mbarrier there.
    let body = "mov.u32 %r0, dynamic;\nmov.u32 %r1, %cluster_ctarank;\nmov.u32 %r2, %cluster_nctarank;\n\
        setp.ne.u32 %p1, %t, 0;\n@%p1 bra ready;\n\
        mbarrier.init.shared::cta.b64 [%r0], 1;\nfence.mbarrier_init.release.cluster;\n\
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r0], 16;\n\
        ready: barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n\
        @%p1 bra wait;\n\
        add.u32 %r3, %r1, 1;\nrem.u32 %r3, %r3, %r2;\nmapa.shared::cluster.u32 %r4, %r0, %r3;\n\
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r4+16], {%r1, %r1, %r1, %r1}, [%r4];\n\
        wait: {\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%r0], 0;\n@!done bra again;\n}\n\
        ld.shared.u32 %r5, [%r0+28];\nsetp.ne.u32 %p2, %t, 33;\n@%p2 bra end;\n\
        mov.u32 %r6, %ctaid.x;\nmul.wide.u32 %d0, %r6, 4;\nadd.s64 %d0, %d0, %out;\nst.global.u32 [%d0], %r5;\n\
        end: barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";
    let all = Launch { blocks: [8, 1, 1], cluster: [4, 1, 1], ..block(64) };
    assert_eq!(launch(body, all, &[0; 8]).unwrap(), [3, 0, 1, 2, 3, 0, 1, 2]);
}

#[test]
fn what_is_never_counted_is_a_deadlock() {
    let body = "mov.u32 %r0, dynamic;\nmbarrier.init.shared::cta.b64 [%r0], 2;\n\
        mbarrier.arrive.shared::cta.b64 _, [%r0];\n\
        again: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r0], 0;\n@!%p1 bra again;";
    assert_eq!(launch(body, block(1), &[0; 4]).unwrap_err().kind, FaultKind::Deadlock);
}

#[test]
fn generic_addresses_lead_to_every_memory() {
    let body = ".local .align 8 .b8 mine[16];\nmov.u64 %d0, mine;\ncvta.local.u64 %d1, %d0;\n\
        mov.u32 %r0, dynamic;\ncvt.u64.u32 %d2, %r0;\ncvta.shared.u64 %d3, %d2;\n\
        shl.b32 %r1, %t, 3;\ncvt.u64.u32 %d4, %r1;\nadd.s64 %d3, %d3, %d4;\n\
        st.u32 [%d1+4], %t;\nld.local.u32 %r2, [%d0+4];\nst.u32 [%d3], %r2;\nld.shared.u32 %r3, [dynamic];\n\
        setp.eq.u32 %p1, %t, 1;\nselp.b64 %d5, %d3, %d1, %p1;\nselp.b64 %d5, %d5, %at, %p1;\n\
        st.u32 [%at], 9;\nld.u32 %r4, [%d5];\nst.global.v2.u32 [%at], {%r4, %r2};";
    let out =
        launch(body.replace("ld.shared.u32 %r3, [dynamic];\n", "").as_str(), block(2), &[0; 8])
            .unwrap();
    assert_eq!((&out[..2], &out[4..6]), (&[9, 0][..], &[1, 1][..]));
}
