"""Figures of a disassembly: the counts, and the blocks that fit on sm_90."""

import pytest

from streamchar.tools.sass import SassError, parse, resident_blocks, vector_share

LISTING = """
Resource usage:
 Common:
  GLOBAL:0
 Function _example_kernel:
  REG:96 STACK:16 SHARED:1280 LOCAL:8 CONSTANT[0]:664 TEXTURE:0 SURFACE:0 SAMPLER:0
\tcode for sm_90a
\t\tFunction : _example_kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
                                                                                /* 0x000e300000000800 */
        /*0010*/              @!P0 LDG.E.EF.128 R4, desc[UR4][R2.64] ;          /* 0x0000000402047981 */
        /*0020*/                   LDG.E.LTC128B.U16.CONSTANT R5, desc[UR4][R2.64] ;    /* 0x00 */
        /*0030*/                   LDG.E R6, desc[UR4][R2.64+0x128] ;           /* 0x0000000402047981 */
        /*0040*/               @P1 LDGSTS.E.BYPASS.LTC128B.128 [R7], desc[UR4][R8.64] ; /* 0x00 */
        /*0050*/             @!UPT UIADD3 URZ, URZ, URZ, URZ ;                  /* 0x00 */
        /*0060*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;      /* 0x00 */
        /*0070*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24 ; /* 0x00 */
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;        /* 0x00 */
        /*0090*/                   UTMALDG.2D [UR8], [UR4] ;                    /* 0x00 */
        /*00a0*/                   MUFU.EX2 R4, R4 ;                            /* 0x00 */
        /*00b0*/                   MUFU.RCP R4, R4 ;                            /* 0x00 */
        /*00c0*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;            /* 0x00 */
        /*00d0*/                   STL.64 [R1], R4 ;                            /* 0x00 */
        /*00e0*/                   LDL.LU R4, [R1+0x4] ;                        /* 0x00 */
        /*00f0*/                   STG.E.64 desc[UR4][R2.64], R4 ;              /* 0x00 */
        /*0100*/                   STG.E.U8 desc[UR4][R2.64], R4 ;              /* 0x00 */
        /*0110*/                   EXIT ;                                       /* 0x000000000000794d */
        /*0120*/                   BRA 0x120;                                   /* 0xfffffffc00fc7947 */
        /*0130*/                   NOP;                                         /* 0x0000000000007918 */
"""


def test_the_disassembly_is_counted():
    figures = parse(LISTING, threads=128, dynamic_shared=4096)
    assert (figures.registers, figures.stack_bytes, figures.threads) == (96, 24, 128)
    # 1280 bytes are the system's 1 KB and 256 of the kernel's own.
    assert figures.shared_bytes == 4096 + 256
    assert figures.instructions == 19
    assert figures.ops == {
        "HGMMA": 1,
        "QGMMA": 1,
        "HMMA": 1,
        "UTMALDG": 1,
        "LDGSTS": 1,
        "LDL": 1,
        "STL": 1,
        "MUFU.EX2": 1,
        "USETMAXREG": 1,
    }
    assert figures.loads == {128: 2, 32: 1, 16: 1}
    assert figures.stores == {64: 1, 8: 1}


@pytest.mark.parametrize("text", ["", LISTING.split("\tcode for")[0], LISTING.split("REG:")[0]])
def test_a_text_without_a_kernel_is_refused(text):
    with pytest.raises(SassError, match="must hold a resource line and instructions"):
        parse(text, 128, 0)


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [
        (32, 128, 0, 16),  # 64 warps
        (16, 32, 0, 32),  # 32 blocks
        (33, 256, 0, 6),  # 33 registers are granted as 40: 51 warps, taken in fours, hold 6 blocks of 8
        (33, 64, 0, 24),  # the same 51 warps, taken in fours, hold 24 blocks of 2
        (168, 384, 0, 1),  # 12 warps of 5376 registers: 12 fit
        (255, 256, 0, 1),
        (255, 512, 0, 0),  # 16 warps of 8192 registers do not fit
        (32, 128, 227 * 1024, 1),
        (32, 128, 227 * 1024 + 1, 0),
        (32, 128, 113 * 1024, 2),  # 114 KB with the system's share: twice in 228
        (32, 128, 113 * 1024 + 1, 1),
    ],
)
def test_resident_blocks_follow_the_limits_of_sm_90(registers, threads, shared, blocks):
    assert resident_blocks(registers, threads, shared) == blocks


def test_the_vector_share_counts_bytes():
    assert vector_share({128: 3, 32: 4}, 128) == pytest.approx(0.75)
    assert vector_share({128: 1, 64: 2}, 64) == 1.0
    assert vector_share({}, 128) == 0.0
