//! Packing: from a checkpoint's order of elements into the order in which the kernels read them.

use einfuse_graph::{Graph, TensorId};
use half::{bf16, f16};

use crate::loops::Format as Storage;
use crate::schedule::homes::{Region, View};

/// The elements of a tensor as a checkpoint stores them: little-endian, row-major in the tensor's axes.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [u8]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [u8]),
    /// 16-bit floats (IEEE 754 binary16).
    F16(&'a [u8]),
}

impl Values<'_> {
    fn bytes(&self) -> (&[u8], usize) {
        match self {
            Values::F32(bytes) => (bytes, 4),
            Values::Bf16(bytes) | Values::F16(bytes) => (bytes, 2),
        }
    }
}

/// A tensor's elements do not fill its axes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{tensor}` wants {wanted} elements for its axes {axes}, there are {found} bytes of {element} each")]
pub struct PackError {
    /// The tensor's name.
    pub tensor: String,
    /// Its axes.
    pub axes: String,
    /// The number of elements of the axes.
    pub wanted: usize,
    /// The number of bytes that were given.
    pub found: usize,
    /// Bytes of an element.
    pub element: usize,
}

/// A stretch of the packed weights: one tensor, or several that a kernel reads interleaved.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Which tensors it holds.
    pub tensors: Vec<TensorId>,
    /// The layer whose weights they are; `None` for those that all layers share.
    pub layer: Option<usize>,
    /// Where it begins, in bytes from the start of all packed weights.
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
    /// How its elements are stored.
    pub storage: Storage,
    views: Vec<SizedView>,
}

/// A view with what packing needs to know of its tensor.
#[derive(Clone, Debug)]
struct SizedView {
    name: String,
    axes: String,
    sizes: Vec<usize>,
    view: View,
}

impl Packed {
    pub(crate) fn of(graph: &Graph, region: &Region, layer: Option<usize>, offset: usize) -> Packed {
        let sized = |view: &View| SizedView {
            name: graph.tensor(view.tensor).name.clone(),
            axes: graph.axes_of(view.tensor),
            sizes: graph.tensor(view.tensor).axes.iter().map(|&a| graph.size(a).unwrap_or(1)).collect(),
            view: view.clone(),
        };
        Packed {
            tensors: region.views.iter().map(|v| v.tensor).collect(),
            layer,
            offset,
            bytes: region.len * region.storage.elem().bytes(),
            storage: region.storage,
            views: region.views.iter().map(sized).collect(),
        }
    }

    /// Writes the tensors' elements, given in the order of `tensors`, into the stretch `out`, which is zero. bf16 storage
    /// rounds to nearest, ties to even.
    ///
    /// # Errors
    /// A tensor with another number of elements than its axes have.
    pub fn pack(&self, values: &[Values<'_>], out: &mut [u8]) -> Result<(), PackError> {
        for (sized, values) in self.views.iter().zip(values) {
            let (bytes, element) = values.bytes();
            let wanted: usize = sized.sizes.iter().product();
            if bytes.len() != wanted * element {
                let (tensor, axes) = (sized.name.clone(), sized.axes.clone());
                return Err(PackError { tensor, axes, wanted, found: bytes.len(), element });
            }
            match (self.storage, values) {
                (Storage::F32, Values::F32(b)) => sized.scatter::<4, 4>(b, out, |x| x),
                (Storage::F32, Values::Bf16(b)) => sized.scatter::<2, 4>(b, out, |x| [0, 0, x[0], x[1]]),
                (Storage::F32, Values::F16(b)) => {
                    sized.scatter::<2, 4>(b, out, |x| f16::from_le_bytes(x).to_f32().to_le_bytes());
                }
                (Storage::Bf16, Values::Bf16(b)) => sized.scatter::<2, 2>(b, out, |x| x),
                (Storage::Bf16, Values::F32(b)) => {
                    sized.scatter::<4, 2>(b, out, |x| bf16::from_f32(f32::from_le_bytes(x)).to_le_bytes());
                }
                (Storage::Bf16, Values::F16(b)) => {
                    sized.scatter::<2, 2>(b, out, |x| bf16::from_f32(f16::from_le_bytes(x).to_f32()).to_le_bytes());
                }
                (Storage::Q8 | Storage::Q4, _) => {}
            }
        }
        Ok(())
    }
}

impl SizedView {
    /// The elements of the view, each at its place. Offsets are a sum over the dimensions, so that each dimension's part
    /// is computed once.
    fn scatter<const FROM: usize, const TO: usize>(
        &self,
        source: &[u8],
        out: &mut [u8],
        convert: impl Fn([u8; FROM]) -> [u8; TO],
    ) {
        let dims = self.sizes.len();
        let base = self.view.layout.offset_of(&vec![0; dims]);
        let parts: Vec<Vec<usize>> = (0..dims)
            .map(|dim| {
                let mut index = vec![0; dims];
                let at = |i: usize, index: &mut Vec<usize>| {
                    index[dim] = i;
                    self.view.layout.offset_of(index) - base
                };
                (0..self.sizes[dim]).map(|i| at(i, &mut index)).collect()
            })
            .collect();
        let (elements, _) = source.as_chunks::<FROM>();
        let (places, _) = out.as_chunks_mut::<TO>();
        self.dimension(0, 0, base, &parts, elements, places, &convert);
    }

    #[allow(clippy::too_many_arguments)]
    fn dimension<const FROM: usize, const TO: usize>(
        &self,
        dim: usize,
        from: usize,
        to: usize,
        parts: &[Vec<usize>],
        elements: &[[u8; FROM]],
        places: &mut [[u8; TO]],
        convert: &impl Fn([u8; FROM]) -> [u8; TO],
    ) {
        let Some(part) = parts.get(dim) else {
            places[to] = convert(elements[from]);
            return;
        };
        let stride: usize = self.sizes[dim + 1..].iter().product();
        if let Some(at) = self.view.fixed[dim] {
            let from = from + at as usize * stride;
            return self.dimension(dim + 1, from, to, parts, elements, places, convert);
        }
        if dim + 1 == parts.len() {
            for (element, offset) in elements[from..from + part.len()].iter().zip(part) {
                places[to + offset] = convert(*element);
            }
            return;
        }
        for (i, offset) in part.iter().enumerate() {
            self.dimension(dim + 1, from + i * stride, to + offset, parts, elements, places, convert);
        }
    }
}
