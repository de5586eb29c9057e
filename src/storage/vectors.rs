//! Comparison of vectors as bytes: whether the one that an index stores equals the one that was written.

/// The largest difference between two components of a normalized vector, relative to its norm: f32 has seven digits.
const TOLERANCE: f64 = 1e-5;

/// Returns whether a stored vector (f32, little-endian) equals the written one.
///
/// A stored vector with a `length` was divided by it, and is compared to within rounding. One without is compared bit
/// by bit.
#[must_use]
pub fn is_same(stored: &[u8], length: Option<f32>, written: &[u8]) -> bool {
    let Some(length) = length else { return stored == written };
    if stored.len() != written.len() {
        return false;
    }
    let norm: f64 = floats(written).map(|number| number * number).sum::<f64>().sqrt();
    // Where the square of the norm overflows or underflows f32, the stored vector is arbitrary.
    let square = norm * norm;
    if !(f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&square) {
        return true;
    }
    let scale = f64::from(length);
    floats(stored).zip(floats(written)).all(|(stored, written)| (stored * scale - written).abs() <= TOLERANCE * norm)
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.chunks_exact(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn a_vector_equals_itself_bit_by_bit() {
        let vector = bytes(&[1.0, f32::NAN, -0.0]);
        assert!(is_same(&vector, None, &vector));
        assert!(!is_same(&vector, None, &bytes(&[1.0, f32::NAN, 0.0])));
        assert!(!is_same(&vector, None, &vector[..8]));
    }

    #[test]
    fn a_normalized_vector_equals_the_written_one_to_within_rounding() {
        let (written, norm) = (bytes(&[3.0, 4.0]), 5.0);
        assert!(is_same(&bytes(&[0.6, 0.8]), Some(norm), &written));
        assert!(!is_same(&bytes(&[0.8, 0.6]), Some(norm), &written));
        assert!(!is_same(&bytes(&[0.6, 0.8]), Some(5.1), &written));
        assert!(!is_same(&bytes(&[0.6]), Some(norm), &written));
    }

    #[test]
    fn a_vector_that_cannot_be_normalized_cannot_be_compared() {
        for number in [0.0, f32::NAN, 1e30, 1e-30] {
            assert!(is_same(&bytes(&[0.0, 0.0]), Some(1.0), &bytes(&[number, number])));
        }
    }
}
