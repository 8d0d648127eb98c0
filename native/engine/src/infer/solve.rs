//! The rule of `triangular_solve`, and what all of its forms come to: lower triangles.

use super::Inputs;
use crate::error::{Error, Result};
use crate::op::TriangularSolve;
use crate::spec::{Spec, shape_text};

pub(super) fn triangular(inputs: &Inputs, attrs: &TriangularSolve) -> Result<Vec<Spec>> {
    inputs.count(2, 2)?;
    let (a, b) = (inputs.get(0, "a")?, inputs.get(1, "b")?);
    if !a.dtype.is_float() {
        return Err(Error::dtype(inputs.op, "a", "a float type", a.dtype));
    }
    if b.dtype != a.dtype {
        return Err(Error::dtype(inputs.op, "b", a.dtype, b.dtype));
    }
    let [batch @ .., rows, size] = a.shape() else {
        return Err(Error::shape(inputs.op, "a", "a matrix, or a batch of them", a));
    };
    if rows != size {
        return Err(Error::shape(inputs.op, "a", "square", a));
    }
    // The axis of b that a's unknowns are along, where b is of matrices.
    let along = batch.len() + usize::from(!attrs.left_side);
    let fits = match b.rank() - b.rank().min(batch.len()) {
        1 => b.last() == *size,
        2 => b.shape()[along] == *size,
        _ => false,
    };
    if !fits || !b.shape().starts_with(batch) {
        let vector = shape_text(&[batch, &[*size]].concat());
        let place = if attrs.left_side { "the last but one" } else { "the last" };
        let expected = format!("{vector}, or one axis more and {size} long on {place}");
        return Err(Error::shape(inputs.op, "b", expected, b));
    }
    Ok(vec![b.clone()])
}

/// Lower triangles of `size` rows, one for each entry of the batch, that are solved from the first
/// row down, for `columns` right sides each. An upper triangle is a lower one that begins at its
/// last element and goes backwards; a transposed one has its two steps exchanged, and so has one on
/// the right of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Systems {
    pub batch: usize,
    pub size: usize,
    pub columns: usize,
    pub a: Layout,
    /// Of b and of x.
    pub x: Layout,
}

/// How a matrix lies: where its first element is, and how far it is to the next row and column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub first: isize,
    pub row: isize,
    pub column: isize,
}

impl Layout {
    /// From the last of so many rows up.
    fn upside_down(self, rows: usize) -> Self {
        let last = rows.saturating_sub(1) as isize;
        Layout { first: self.first + last * self.row, row: -self.row, ..self }
    }

    fn exchanged(self) -> Self {
        Layout { row: self.column, column: self.row, ..self }
    }
}

impl Systems {
    /// Of an op that `infer` has passed.
    pub(crate) fn of(attrs: &TriangularSolve, a: &Spec, b: &Spec) -> Self {
        let (size, batch) = (a.last(), a.shape()[..a.rank() - 2].iter().product());
        let columns = b.len().checked_div(size.saturating_mul(batch)).unwrap_or(0);
        let by_rows = |length: usize| Layout { first: 0, row: length as isize, column: 1 };
        let (mut triangle, mut lower) = (by_rows(size), attrs.lower);
        if attrs.transpose == attrs.left_side {
            (triangle, lower) = (triangle.exchanged(), !lower);
        }
        let vectors = b.rank() < a.rank();
        let mut x = match attrs.left_side || vectors {
            true => by_rows(columns),
            false => by_rows(size).exchanged(),
        };
        if !lower {
            triangle = triangle.upside_down(size).exchanged().upside_down(size).exchanged();
            x = x.upside_down(size);
        }
        Systems { batch, size, columns, a: triangle, x }
    }
}
