"""DICOM: from stored numbers to numbers in which more is brighter, against pydicom's own steps; every bad one named; no patient's name anywhere."""

import json
import logging
import os

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from dicom_files import NAME, dataset, hounsfield, write  # noqa: E402

from unmask.data import forms, images, medical  # noqa: E402
from unmask.data.inspect import inspect, lines  # noqa: E402
from unmask.data.loader import Pictures  # noqa: E402
from unmask.data.quarantine import NeedsExtra  # noqa: E402
from unmask.data.sources import open_source  # noqa: E402
from unmask.data.statistics import survey  # noqa: E402
from unmask.data.views import part  # noqa: E402
from unmask.errors import Refused  # noqa: E402
from unmask.settings import Views  # noqa: E402

RNG = np.random.default_rng(0)
SHIPPED = os.path.join(os.path.dirname(pydicom.__file__), "data", "test_files")  # files that come with pydicom


def shipped(name):
    path = os.path.join(SHIPPED, name)
    if not os.path.isfile(path):
        pytest.skip(f"this pydicom comes without {name}")
    return path


def grey(raw, window=None):
    pixels = images.open_picture(raw).under(window).pixels()
    assert pixels.ndim == 3 and pixels.shape[2] == 1
    return pixels[..., 0]


@pytest.mark.parametrize("bits, allocated, signed", [(8, 8, False), (10, 16, False), (12, 16, False), (16, 16, False), (12, 16, True), (16, 16, True), (32, 32, False)])
def test_stored_numbers_come_out_as_they_are(tmp_path, bits, allocated, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2 ** min(bits, 24))
    array = RNG.integers(low, high, (20, 31)).astype(f"{'i' if signed else 'u'}{allocated // 8}")
    path = write(tmp_path / "x.dcm", array, BitsStored=bits)
    picture = images.open_picture(path)
    assert (picture.height, picture.width, picture.bands, picture.eight_bit) == (20, 31, 1, bits == 8)
    assert np.array_equal(grey(path), array) and np.array_equal(grey((tmp_path / "x.dcm").read_bytes()), array)


def test_ct_comes_out_in_hounsfield_units(tmp_path):
    truth = hounsfield()
    path = write(tmp_path / "ct.dcm", ((truth + 1024) * 2).astype(np.uint16), BitsStored=12, RescaleSlope=0.5, RescaleIntercept=-1024, Modality="CT")
    assert np.array_equal(grey(path), truth)
    ds = pydicom.dcmread(shipped("CT_small.dcm"))
    assert np.array_equal(grey(ds.filename), pydicom.pixels.apply_modality_lut(ds.pixel_array, ds))


def test_monochrome1_is_turned(tmp_path):
    array = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    path = write(tmp_path / "x.dcm", array, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(path), 4095 - array)
    inverse = write(tmp_path / "y.dcm", array, BitsStored=12, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert np.array_equal(grey(inverse), 4095 - array), "turned once, not twice"
    shaped = write(tmp_path / "z.dcm", array, BitsStored=12, PresentationLUTShape="INVERSE")
    assert np.array_equal(grey(shaped), 4095 - array)
    small = write(tmp_path / "s.dcm", array.astype(np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(small), 255 - array.astype(np.uint8))
    centred = images.open_picture(path).under((1000.0, 500.0)).pixels()[..., 0]
    assert np.array_equal(centred, 2000 - array.astype(int)), "a window that is asked for stays where it is: its centre does not move"


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_files_own_window_is_pydicoms(tmp_path, function, turned):
    array = RNG.integers(0, 4096, (40, 40)).astype(np.uint16)
    kind = "MONOCHROME1" if turned else "MONOCHROME2"
    path = write(tmp_path / "x.dcm", array, BitsStored=12, PhotometricInterpretation=kind, WindowCenter=1500, WindowWidth=900, VOILUTFunction=function)
    ds = pydicom.dcmread(path)
    truth = pydicom.pixels.apply_windowing(array, ds) / 4095
    ours = grey(path, "file")
    assert ours.dtype == np.float32 and np.allclose(ours, 1 - truth if turned else truth, atol=1e-6)
    assert images.open_picture(path).own_window == (1500, 900)


def test_a_lookup_table_goes_before_a_window(tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], list(range(65535, -1, -257))
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    array = RNG.integers(0, 256, (9, 9)).astype(np.uint16)
    path = write(tmp_path / "x.dcm", array, BitsStored=12, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    assert np.allclose(grey(path, "file"), (255 - array) / 255, atol=2 / 255)


def test_without_a_window_percentiles_of_the_picture(tmp_path):
    array = RNG.integers(100, 900, (64, 64)).astype(np.uint16)
    array[0, 0] = 60000
    ours = grey(write(tmp_path / "x.dcm", array), "file")
    assert ours.min() == 0 and ours.max() == 1 and 0.4 < ours.mean() < 0.6


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_becomes_the_darkest(tmp_path, kind):
    truth = RNG.integers(0, 500, (16, 16)).astype(np.int16)
    stored = truth.copy()
    stored[:, :4] = -2000
    pixels = grey(write(tmp_path / "x.dcm", stored, PhotometricInterpretation=kind, PixelPaddingValue=-2000))
    inside = pixels[:, 4:]
    assert (pixels[:, :4] == inside.min()).all() and np.ptp(inside) == np.ptp(truth[:, 4:])
    ranged = np.where(stored < -1, np.int16(-1998), stored)
    path = write(tmp_path / "y.dcm", ranged, PhotometricInterpretation=kind, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    assert np.array_equal(grey(path), pixels)


def test_colour(tmp_path):
    array = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    picture = images.open_picture(write(tmp_path / "rgb.dcm", array))
    assert (picture.bands, picture.eight_bit) == (3, True) and np.array_equal(picture.pixels(), array)
    deep = images.open_picture(write(tmp_path / "deep.dcm", array.astype(np.uint16) * 9))
    assert not deep.eight_bit and np.array_equal(deep.pixels(), array.astype(np.uint16) * 9)
    for name in ("SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm", "examples_jpeg2k.dcm"):
        ds = pydicom.dcmread(shipped(name))
        truth = ds.pixel_array
        if "Palette" in "".join(ds.dir()):
            truth = (pydicom.pixels.apply_color_lut(truth, ds)[..., :3] / 257).round().astype(np.uint8)
        assert np.abs(images.open_picture(ds.filename).pixels().astype(int) - truth).max() <= 1, name


def test_of_several_frames_one_is_read(tmp_path):
    volume = np.arange(5)[:, None, None].astype(np.uint16) * 100 + RNG.integers(0, 9, (5, 12, 13)).astype(np.uint16)
    path = write(tmp_path / "x.dcm", volume)
    picture = images.open_picture(path)
    assert picture.frames == 5
    assert np.array_equal(part(picture, None, None).pixels()[..., 0], volume[2]), "evaluation: the middle one"
    from random import Random

    seen = {int(part(picture, None, Random(draw)).pixels()[0, 0, 0]) // 100 for draw in range(60)}
    assert seen == set(range(5)), "training: any"


def test_frames_have_their_own_rescale_and_window(tmp_path):
    from pydicom.dataset import Dataset

    def group(slope, centre):
        rescale, voi, both = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, -10, "US"
        voi.WindowCenter, voi.WindowWidth = centre, 50
        both.PixelValueTransformationSequence, both.FrameVOILUTSequence = [rescale], [voi]
        return both

    volume = RNG.integers(0, 99, (2, 8, 8)).astype(np.uint16)
    path = write(tmp_path / "x.dcm", volume, PerFrameFunctionalGroupsSequence=[group(1, 40), group(3, 70)])
    picture = images.open_picture(path)
    for number, slope, centre in ((0, 1, 40.0), (1, 3, 70.0)):
        frame = picture.frame(number)
        assert np.array_equal(frame.pixels()[..., 0], volume[number].astype(int) * slope - 10) and frame.own_window == (centre, 50)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"])
def test_compressed_files_equal_the_plain_one(name):
    if "jpeg_ls" in name:
        pytest.importorskip("imagecodecs")
    if "jp2k" in name:
        pytest.importorskip("openjpeg")
    assert np.array_equal(grey(shipped(name)), grey(shipped("MR_small.dcm")))


@pytest.mark.parametrize("signed", [False, True])
def test_lossless_jpeg_and_rle_round_trip(tmp_path, signed):
    imagecodecs = pytest.importorskip("imagecodecs")
    from pydicom.encaps import encapsulate

    array = RNG.integers(-2000 if signed else 0, 2000, (24, 32)).astype(np.int16 if signed else np.uint16)
    ds = dataset(array)
    ds.compress(pydicom.uid.RLELossless)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    assert np.array_equal(grey(str(tmp_path / "rle.dcm")), array)
    ds = dataset(array)
    ds.PixelData = encapsulate([bytes(imagecodecs.ljpeg_encode(array.view(np.uint16), bitspersample=16))])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    ds.save_as(tmp_path / "jpeg.dcm", enforce_file_format=True)
    assert np.array_equal(grey(str(tmp_path / "jpeg.dcm")), array)


def test_jpeg_in_eight_bits():
    assert images.open_picture(shipped("SC_rgb_jpeg_dcmtk.dcm")).pixels().shape == (100, 100, 3)
    truth = images.open_picture(shipped("SC_rgb_rle.dcm")).pixels().astype(int)
    pytest.importorskip("imagecodecs")
    assert np.array_equal(images.open_picture(shipped("SC_rgb_jpeg_gdcm.dcm")).pixels(), truth), "lossless JPEG in colour"


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.dcm", np.zeros((4, 4), np.uint16))
    monkeypatch.setattr(medical, "find_spec", lambda name: None)
    with pytest.raises(NeedsExtra, match=r'pip install "unmask\[medical\]"'):
        images.open_picture(path)
    with pytest.raises(Refused, match=r"unmask\[medical\]"):
        survey(open_source(path))


def bad(folder):
    """name -> what its reason must say."""
    ds = dataset(np.zeros((8, 8), np.uint16))
    del ds.PixelData
    ds.save_as(folder / "bad_no_pixels.dcm", enforce_file_format=True)
    write(folder / "whole.tmp", RNG.integers(0, 999, (64, 64)).astype(np.uint16))
    data = (folder / "whole.tmp").read_bytes()
    (folder / "whole.tmp").unlink()
    (folder / "bad_truncated.dcm").write_bytes(data[:-3000])
    (folder / "bad_head.dcm").write_bytes(data[:200])
    (folder / "bad_empty.dcm").write_bytes(b"")
    (folder / "bad_text.dcm").write_bytes(b"hello, this is no DICOM file")
    ds = dataset(np.zeros((8, 8), np.uint8))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds["PixelData"].is_undefined_length = True
    ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    ds.save_as(folder / "bad_film.dcm", enforce_file_format=True)
    ds = dataset(np.zeros((8, 8), np.uint16))
    del ds.Rows, ds.Columns, ds.PixelData
    ds.Modality = "SR"
    ds.save_as(folder / "bad_report", enforce_file_format=True)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    ds.save_as(folder / "bad_index.dcm", enforce_file_format=True)
    write(folder / "bad_kind.dcm", np.zeros((8, 8), np.uint8), PhotometricInterpretation="HSV")
    write(folder / "bad_size.dcm", np.zeros((8, 8), np.uint8), NumberOfFrames=77)
    data = (folder / "bad_size.dcm").read_bytes()
    assert data.count(b"77") == 1
    (folder / "bad_size.dcm").write_bytes(data.replace(b"77", b"7A"))
    return {
        "bad_no_pixels.dcm": "without pixel data", "bad_truncated.dcm": "ends early", "bad_head.dcm": "DICOM", "bad_empty.dcm": "empty file",
        "bad_text.dcm": "no DICOM file", "bad_film.dcm": "MPEG2", "bad_report": "SR", "bad_index.dcm": "DICOMDIR", "bad_kind.dcm": "HSV",
        "bad_size.dcm": "sizes cannot be read",
    }  # fmt: skip


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """A folder as hospitals have them: 12 CT slices of 3 patients without endings, an index, files that are no pictures."""
    folder = tmp_path_factory.mktemp("ward")
    (folder / "DICOM").mkdir()
    for number in range(12):
        stored = hounsfield(number) + 1024
        more = {"WindowCenter": 40, "WindowWidth": 400, "PatientID": f"P{number % 3}", "RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}
        write(folder / "DICOM" / f"1.2.840.{number}", stored.astype(np.uint16), BitsStored=12, **more)
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("no picture")
    return folder, bad(folder)


def test_a_folder_is_found_without_endings(ward):
    folder, wrong = ward
    assert forms.resolve(str(folder)).kind == "folder"
    names = set(forms.pictures(str(folder)))
    assert names == {f"DICOM/1.2.840.{number}" for number in range(12)} | set(wrong)


def test_the_bad_ones_are_named_and_nobody_else_is(ward, tmp_path, caplog, capfd):
    folder, wrong = ward
    with caplog.at_level(logging.DEBUG):
        source = open_source(str(folder))
        report = inspect(source)
        form = survey(source, max_bad_share=0.9)
        pictures = Pictures(source, form, Views(), (16, 16), max_bad_share=0.9, quarantine=tmp_path / "quarantine.jsonl")
        batches = [pictures.finish(batch, "cpu") for batch in pictures.batches(8, 0, 8)]
    assert all(batch.isfinite().all() for batch in batches)
    reasons = {os.path.basename(one["path"]): one["reason"] for one in report["bad"]}
    assert reasons.keys() == wrong.keys()
    assert not [(name, reasons[name]) for name, word in wrong.items() if word not in reasons[name] or "\n" in reasons[name]]
    assert report["readable"] == 12 and report["patients"] == {"count": 3, "files": 12 + 0}
    assert report["windows"] == {"centre 40 width 400": 12} and report["values"][0] < -900
    text = "\n".join([*lines(report), json.dumps(report), caplog.text, *capfd.readouterr(), (tmp_path / "quarantine.jsonl").read_text()])
    assert "3 in 12 files" in text and "12-bit DICOM" in text
    assert NAME not in text and "Penelope" not in text and "P-007" not in text


def test_the_name_of_a_patient_is_never_read(tmp_path):
    picture = images.open_picture(write(tmp_path / "x.dcm", np.zeros((4, 4), np.uint16)))
    assert "PatientName" not in picture._head and "PatientID" not in picture._head
    assert picture.patient and "007" not in picture.patient


def test_the_window_of_a_set(ward):
    source = open_source(str(ward[0] / "DICOM"))
    own = survey(source)
    assert own.window == "file" and (own.low, own.high) == ((0.0,), (1.0,)) and not own.eight_bit
    assert any("own window" in line and "centre 40 width 400" in line for line in own.said)
    lung = survey(source, window="lung")
    assert lung.window == (-600, 1500) and (lung.low, lung.high) == ((-1350,), (150,)) and any("black is -1350 and white 150" in line for line in lung.said)
    given = survey(source, window=(40, 80))
    assert (given.low, given.high) == ((0,), (80,))
    whole = survey(source, window="measured")
    assert whole.window is None and whole.low[0] < -950 and whole.high[0] > 600 and any("percentiles" in line for line in whole.said)
    for form in (own, lung, given, whole):
        assert type(form)(**json.loads(json.dumps(form.as_dict()))) == form
        still = Pictures(source, form, Views(), (48, 48)).still(range(4))
        unit = still * np.float32(form.std[0]) + np.float32(form.mean[0])
        assert unit.min() >= -1e-5 and unit.max() <= 1 + 1e-5
    soft = Pictures(source, survey(source, window=(40, 400)), Views(), (48, 48)).still([0])
    file = Pictures(source, own, Views(), (48, 48)).still([0])
    a, b = (x * s + m for x, s, m in ((soft, survey(source, window=(40, 400)).std[0], survey(source, window=(40, 400)).mean[0]), (file, own.std[0], own.mean[0])))
    assert (a - b).abs().max() < 0.005, "the same window, from the file or asked for (LINEAR ends half a number further in)"


def test_files_without_a_window_are_scaled_together(tmp_path):
    for number in range(6):
        window = {"WindowCenter": 40, "WindowWidth": 400} if number == 0 else {}
        write(tmp_path / f"{number}.dcm", hounsfield(number), **window)
    source = open_source(str(tmp_path))
    form = survey(source)
    assert form.window is None and any("only 1 of 6" in line for line in form.said) and any("percentiles" in line for line in form.said)
    assert survey(source, window="file").window == "file"
    (tmp_path / "0.dcm").unlink()
    with pytest.raises(Refused, match="none of the 5"):
        survey(open_source(str(tmp_path)), window="file")


def test_eight_bit_pictures_take_no_window():
    source = open_source(RNG.integers(0, 255, (4, 16, 16), np.uint8))
    with pytest.raises(Refused, match="more than 8 bits"):
        survey(source, window="lung")
    assert survey(open_source((RNG.normal(size=(8, 16, 16)) * 300).astype(np.int16)), window="bone").high == (1300,)


def test_bytes_of_a_tar_or_table(tmp_path):
    import tarfile

    write(tmp_path / "a.dcm", hounsfield())
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.dcm", "a.dcm")
    source = open_source(str(tmp_path / "x.tar"))
    assert np.array_equal(source.read(0)[..., 0], hounsfield())


def test_a_picture_goes_to_a_worker(tmp_path):
    import pickle

    picture = images.open_picture(write(tmp_path / "a.dcm", hounsfield()))
    assert np.array_equal(pickle.loads(pickle.dumps(picture)).pixels(), picture.pixels())


def test_patients_are_kept_apart(tmp_path, capsys):
    """Without a group column, no patient of DICOM files teaches and judges; with one, the column decides."""
    from unmask.data.splits import parts
    from unmask.settings import Labelled

    rows = ["path,label,group"]
    for number in range(60):
        kind, patient = "ab"[number % 2], number // 5
        (tmp_path / kind).mkdir(exist_ok=True)
        write(tmp_path / kind / f"{number}.dcm", hounsfield(number), PatientID=f"secret {patient}" if patient else "")
        rows.append(f"{kind}/{number}.dcm,{kind},{number % 7}")
    form = survey(open_source(str(tmp_path)))
    pictures = Pictures(open_source(str(tmp_path)), form, Views(), (16, 16))
    found = parts(pictures, None, "data", 0)
    patient = [int(os.path.basename(pictures.source.name(index)).split(".")[0]) // 5 for index in range(60)]
    teach, judge = ({patient[index] for index in part if patient[index]} for part in (found.teach, found.judge))
    assert found.teaching.labels.groups is not None, "who holds a part of the teaching side apart keeps patients whole too"
    assert judge and not teach & judge and len(found.teach) + len(found.judge) == 60
    said = capsys.readouterr().out
    assert "patients" in said and "secret" not in said and "groups" in found.said
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    grouped = Pictures(open_source(str(tmp_path), Labelled(labels=str(tmp_path / "labels.csv"))), form, Views(), (16, 16))
    assert "7 groups" in parts(grouped, None, "data", 0).said and "patients" not in capsys.readouterr().out
