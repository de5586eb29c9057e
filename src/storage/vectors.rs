//! Vectors as bytes: whether one that an index stores is the one that was written.

/// How much a number of a normalized vector may differ, in parts of its length: f32 has seven digits.
const TOLERANCE: f64 = 1e-5;

/// Whether a stored vector (f32, little-endian) is the written one. With a length, the stored one was divided by it, so
/// they are the same to within rounding; without, to the bit.
#[must_use]
pub fn is_same(stored: &[u8], length: Option<f32>, written: &[u8]) -> bool {
    let Some(length) = length else { return stored == written };
    if stored.len() != written.len() {
        return false;
    }
    let norm: f64 = floats(written).map(|number| number * number).sum::<f64>().sqrt();
    // What f32 cannot normalize (an infinite or vanishing square) was stored as whatever came of it.
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
    fn a_vector_is_itself_to_the_bit() {
        let vector = bytes(&[1.0, f32::NAN, -0.0]);
        assert!(is_same(&vector, None, &vector));
        assert!(!is_same(&vector, None, &bytes(&[1.0, f32::NAN, 0.0])));
        assert!(!is_same(&vector, None, &vector[..8]));
    }

    #[test]
    fn a_normalized_vector_is_the_written_one_to_within_rounding() {
        let (written, norm) = (bytes(&[3.0, 4.0]), 5.0);
        assert!(is_same(&bytes(&[0.6, 0.8]), Some(norm), &written));
        assert!(!is_same(&bytes(&[0.8, 0.6]), Some(norm), &written));
        assert!(!is_same(&bytes(&[0.6, 0.8]), Some(5.1), &written));
        assert!(!is_same(&bytes(&[0.6]), Some(norm), &written));
    }

    #[test]
    fn what_cannot_be_normalized_cannot_be_told() {
        for number in [0.0, f32::NAN, 1e30, 1e-30] {
            assert!(is_same(&bytes(&[0.0, 0.0]), Some(1.0), &bytes(&[number, number])));
        }
    }
}
