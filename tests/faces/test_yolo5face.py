import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.faces import make_detector
from ferattn.faces.yolo5face import decode_heads, letterbox, select

SIZE = 64
SIDES = {8: 8, 16: 4, 32: 2}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def heads(**cells: list[float]) -> list[torch.Tensor]:
    """Raw heads in which nothing is a face but the given cells, as ``h<stride>_<anchor>_<row>_<column>``."""
    raw = {stride: torch.zeros(1, 3, side, side, 16) for stride, side in SIDES.items()}
    for head in raw.values():
        head[..., 4] = head[..., 15] = -20.0
    for name, values in cells.items():
        stride, anchor, row, column = map(int, name[1:].split("_"))
        raw[stride][0, anchor, row, column] = torch.tensor(values)
    return list(raw.values())


# One face in head 16, anchor (43, 55), row 1, column 2. By hand: the centre is (2 s(0.0) - 0.5 + cell) 16,
# the size (2 s(t))^2 anchor, landmark k at (0.1 k, -0.1 k) anchors from the corner of the cell.
POINTS = [value for k in range(5) for value in (0.1 * k, -0.1 * k)]
CELL = [0.0, 0.0, logit(0.5), logit(0.25), logit(0.9), *POINTS, logit(0.8)]
HAND = [(0.5 + 2) * 16, (0.5 + 1) * 16, 43.0, 55 * 0.25, 0.9]
HAND += [v for k in range(5) for v in (2 * 16 + 0.1 * k * 43, 16 - 0.1 * k * 55)] + [0.8]


def save(path, outputs: dict[str, np.ndarray]) -> None:
    """A network that ignores its picture and answers with constants."""
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["peak"], keepdims=0),
        helper.make_node("Sub", ["peak", "peak"], ["zero"]),
    ]
    nodes += [helper.make_node("Add", [f"c_{name}", "zero"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in outputs.items()],
        [numpy_helper.from_array(value, f"c_{name}") for name, value in outputs.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)]), path)


def test_decoding_against_arithmetic_by_hand():
    table = decode_heads(heads(h16_1_1_2=CELL), SIZE)
    assert table.shape == (3 * (64 + 16 + 4), 16)
    [row] = table[table[:, 4] > 0.5]
    assert row.tolist() == pytest.approx(HAND, rel=1e-5)


def test_decoding_against_loops():
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(1, 3, side, side, 16, generator=generator) for side in SIDES.values()]
    anchors = {
        8: [(4, 5), (8, 10), (13, 16)],
        16: [(23, 29), (43, 55), (73, 105)],
        32: [(146, 217), (231, 300), (335, 433)],
    }

    def gate(value):
        return 1 / (1 + math.exp(-value))

    expected = []
    for head, stride in zip(raw, SIDES, strict=True):
        for a, (w, h) in enumerate(anchors[stride]):
            for r in range(SIDES[stride]):
                for c in range(SIDES[stride]):
                    t = head[0, a, r, c].tolist()
                    row = [(2 * gate(t[0]) - 0.5 + c) * stride, (2 * gate(t[1]) - 0.5 + r) * stride]
                    row += [(2 * gate(t[2])) ** 2 * w, (2 * gate(t[3])) ** 2 * h, gate(t[4])]
                    for k in range(5, 15, 2):
                        row += [t[k] * w + c * stride, t[k + 1] * h + r * stride]
                    expected.append([*row, gate(t[15])])
    torch.testing.assert_close(decode_heads(raw, SIZE), torch.tensor(expected), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(decode_heads(raw[::-1], SIZE).sum(0), torch.tensor(expected).sum(0))


def test_other_heads_are_refused():
    with pytest.raises(InvalidInput, match=r"\(1, 3, 8, 8, 16\).*this network gives"):
        decode_heads(heads()[:2], SIZE)
    with pytest.raises(InvalidInput, match="expected one output"):
        decode_heads(heads(), 128)


def test_selection_scores_thresholds_and_suppresses():
    row = torch.tensor(HAND)
    shifted, weak, far, broken = row.clone(), row.clone(), row.clone(), row.clone()
    shifted[0] += 2
    shifted[4] = 0.7
    weak[4] = 0.5
    far[0] += 200
    far[15] = 0.75
    broken[0] = math.nan
    kept = select(torch.stack([shifted, weak, far, row, broken]), 0.5, 0.5)
    assert kept[:, 4].tolist() == pytest.approx([0.72, 0.675])
    assert kept[0, :4].tolist() == pytest.approx([40 - 21.5, 24 - 6.875, 43, 13.75])
    assert len(select(torch.stack([row, shifted]), 0.5, 1.0)) == 2
    assert len(select(torch.stack([row, far]), 0.7, 0.5)) == 1
    assert select(row[None][:0], 0.5, 0.5).shape == (0, 15)


@settings(deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_a_letterbox_keeps_proportions_and_centres(height, width):
    boxed, scale, left, top = letterbox(np.zeros((height, width, 3), np.uint8), 64)
    rows, columns = np.nonzero((boxed == 0).all(axis=2))
    assert boxed.shape == (64, 64, 3)
    assert scale * max(height, width) == pytest.approx(64)
    assert (columns.min(), rows.min()) == (left, top)
    assert np.ptp(columns) + 1 == max(1, round(width * scale))
    assert np.ptp(rows) + 1 == max(1, round(height * scale))
    assert (boxed[boxed.any(axis=2)] == 114).all()


@pytest.mark.parametrize("decoded", [True, False])
def test_a_network_is_run_and_its_face_comes_back_to_the_picture(tmp_path, decoded):
    raw = heads(h16_1_1_2=CELL)
    path = tmp_path / "face.onnx"
    if decoded:
        save(path, {"output": decode_heads(raw, SIZE)[None].numpy()})
    else:
        save(path, {f"head{i}": head.numpy() for i, head in enumerate(raw)})
    detector = make_detector("yolo5face", weights=path, input_size=SIZE)
    # 128 x 64 is halved to 64 x 32 and sits 16 rows below the top.
    [face] = detector(np.full((64, 128, 3), 7, np.uint8))
    assert face.score == pytest.approx(0.72, rel=1e-5)
    box = [2 * (40 - 21.5), 2 * (24 - 6.875 - 16), 86, 27.5]
    assert face.box == pytest.approx(box, rel=1e-4)
    flat = [v for k in range(5) for v in (2 * HAND[5 + 2 * k], 2 * (HAND[6 + 2 * k] - 16))]
    assert [v for point in face.landmarks for v in point] == pytest.approx(flat, rel=1e-4, abs=1e-3)
    assert (
        make_detector("yolo5face", weights=path, input_size=SIZE, min_score=0.8)(np.zeros((9, 9, 3), np.uint8)) == []
    )


def test_the_network_sees_rgb_from_0_to_1(tmp_path):
    """Means of the three channels come back as the first numbers of the only candidate."""
    path = tmp_path / "means.onnx"
    before = np.array([[[0, 0, 10, 10, 1]]], np.float32)
    after = np.array([[[0] * 7 + [1]]], np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "shape"], ["means"]),
        helper.make_node("Concat", ["before", "means", "after"], ["output"], axis=2),
    ]
    constants = {"shape": np.array([1, 1, 3]), "before": before, "after": after}
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    detector = make_detector("yolo5face", weights=path, input_size=SIZE)
    [face] = detector(np.broadcast_to(np.array([255, 51, 0], np.uint8), (SIZE, SIZE, 3)))
    assert [*face.landmarks[0], face.landmarks[1][0]] == pytest.approx([1.0, 0.2, 0.0], abs=1e-4)


def test_bad_weights_and_options(tmp_path):
    path = tmp_path / "face.onnx"
    with pytest.raises(InvalidOption, match="needs weights"):
        make_detector("yolo5face")
    with pytest.raises(WeightsMismatch, match="no such file"):
        make_detector("yolo5face", weights=path)
    path.write_bytes(b"junk")
    with pytest.raises(WeightsMismatch, match=r"face\.onnx"):
        make_detector("yolo5face", weights=path)
    save(path, {"output": np.zeros((1, 5, 85), np.float32)})
    with pytest.raises(WeightsMismatch, match="this network gives"):
        make_detector("yolo5face", weights=path, input_size=SIZE)
    for option in ({"input_size": 100}, {"min_score": 0}, {"overlap": 2}):
        with pytest.raises(InvalidOption, match=next(iter(option))):
            make_detector("yolo5face", weights=path, **option)
