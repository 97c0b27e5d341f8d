//! The payloads that the TLS driver sends: a function of a seed and an index, the same as in `driver/driver.c`.

/// Byte `index` of the pattern `seed`.
fn byte(seed: u32, index: u32) -> u8 {
    let mut x = index.wrapping_add(seed.wrapping_mul(0x9E37_79B1)).wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    x = x.wrapping_mul(0xC2B2_AE35);
    x ^= x >> 16;
    x.to_le_bytes()[0]
}

/// The first `size` bytes of the pattern `seed`. No two pieces of it look alike.
pub fn pattern(size: u32, seed: u32) -> Vec<u8> {
    (0..size).map(|index| byte(seed, index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BORINGSSL;
    use crate::driver::Driver;

    #[test]
    fn the_driver_computes_the_same() {
        let mut driver = Driver::start(BORINGSSL).unwrap();
        for (size, seed) in [(0, 1), (1000, 4), (1_000_000, u32::MAX)] {
            let sum = pattern(size, seed).into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            assert_eq!(
                driver.command(&format!("sum {size} {seed}")).unwrap(),
                format!("sum value={sum:016x}")
            );
        }
    }
}
