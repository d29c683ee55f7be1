//! Plain tables for people: columns padded to their widest cell, numbers to the right.

/// Formats rows below a heading; a cell that starts with a digit is set to the right.
pub fn format(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = heading.iter().map(ToString::to_string).collect();
    let numeric: Vec<bool> = (0..widths.len())
        .map(|i| {
            !rows.is_empty()
                && rows.iter().filter_map(|r| r.get(i)).all(|c| c.starts_with(|c: char| c.is_ascii_digit()) || c == "–")
        })
        .collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(&numeric) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if right { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("{before}{cell}{after}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let rows = vec![vec!["web".to_string(), "7".into()], vec!["netback".into(), "123".into()]];
        assert_eq!(super::format(&["name", "size"], &rows), "name     size\nweb         7\nnetback   123\n");
    }
}
