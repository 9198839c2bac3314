//! Sharing a number out among rows.

use anyhow::{Result, ensure};

/// Shares `total` out by weight: the sum is exact, and each row gets one at least.
pub(super) fn shares(total: u32, weights: &[u32]) -> Result<Vec<u32>> {
    let rows = u32::try_from(weights.len())?;
    ensure!(total >= rows, "{total} is too few: there are {rows} rows, each of which needs one");
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    ensure!(sum > 0, "nothing is worth a share");
    let rest = u64::from(total - rows);
    let parts = weights.iter().map(|weight| rest * u64::from(*weight));
    let mut shares: Vec<u32> = parts.clone().map(|part| 1 + (part / sum) as u32).collect();
    // What was rounded off goes to those that lost most by it.
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let lost: Vec<u64> = parts.map(|part| part % sum).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lost[*row]));
    let left = total - shares.iter().sum::<u32>();
    order.iter().take(left as usize).for_each(|row| shares[*row] += 1);
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_shared_out() {
        assert_eq!(shares(10, &[1, 1]).unwrap(), [5, 5]);
        assert_eq!(shares(4, &[1000, 1, 1]).unwrap(), [2, 1, 1]);
        assert_eq!(shares(3, &[1000, 0, 1]).unwrap(), [1, 1, 1]);
        assert!(shares(2, &[1, 1, 1]).is_err() && shares(2, &[0, 0]).is_err());
        for total in 7..300 {
            let shares = shares(total, &[240, 25, 25, 10, 1, 0, 77]).unwrap();
            assert_eq!(shares.iter().sum::<u32>(), total);
            assert!(shares.iter().all(|share| *share > 0) && shares[0] >= shares[6]);
        }
    }
}
