"""True sentences about a run, in every state, of every kind."""

from __future__ import annotations

from run_folders import falling, measured, run_folder

from unmask.run.records import Run
from unmask.visualize.verdict import newest, verdict


def said(path):
    return [(finding.mark, finding.text) for finding in verdict(Run.read(path))]


def about(path, word):
    return next(((mark, text) for mark, text in said(path) if word in text), None)


def test_the_state_stands_first(tmp_path):
    for state, mark, word in (("failed", "bad", "failed"), ("interrupted", "open", "resumed exactly"), ("running", "open", "not finished")):
        assert said(run_folder(tmp_path / state, falling(), status=state))[0][0] == mark
        assert word in said(tmp_path / state)[0][1]
    dead = run_folder(tmp_path / "dead", falling(), status="running")
    (dead / ".lock").touch()
    assert said(dead)[0][0] == "bad" and "Nobody trains" in said(dead)[0][1]
    assert "No step" in said(run_folder(tmp_path / "new", status="running"))[1][1]


def test_the_loss_is_judged_beside_its_baselines(tmp_path):
    both = {"patch_mean": 0.98, "copy_nearest": 1.4}
    assert said(run_folder(tmp_path / "1", falling(), **both))[0][0] == "good"
    worse = said(run_folder(tmp_path / "2", [1.5] * 100, **both))
    assert worse[0][0] == "bad" and "not learned" in worse[0][1]
    between = said(run_folder(tmp_path / "3", [1.2] * 100, **both))
    assert between[0][0] == "bad" and "but not lower than filling each hidden patch with its own mean" in between[0][1]
    hardly = said(run_folder(tmp_path / "4", [0.97] * 100, **both))
    assert hardly[0][0] == "open" and "hardly begun" in hardly[0][1]
    assert said(run_folder(tmp_path / "5", [0.5] * 100))[0][0] == "open"
    assert about(run_folder(tmp_path / "6", [1 - i / 400 for i in range(200)], **both), "longer run would")[0] == "note"
    assert about(run_folder(tmp_path / "7", [0.5] * 200, **both), "longer run would") is None


def test_features_are_judged_beside_random_ones(tmp_path):
    def evaluated(name, *rows):
        return run_folder(tmp_path / name, falling(), evaluations=rows)

    apart = evaluated("apart", measured("linear", 40.0, 38.0, 42.0), measured("linear", 30.0, 28.0, 32.0, random=True))
    assert about(apart, "linear")[0] == "good" and "intervals do not touch" in about(apart, "linear")[1]
    near = evaluated("near", measured("linear", 40.0, 35.0, 45.0), measured("linear", 38.0, 33.0, 43.0, random=True))
    assert about(near, "linear") == ("open", "evaluate linear: top-1 40.0 % against 38.0 % of the random encoder; the intervals overlap, so a difference is not shown.")
    assert about(evaluated("worse", measured("knn", 20.0, 18.0, 22.0), measured("knn", 40.0, 38.0, 42.0, random=True)), "knn")[0] == "bad"
    other = evaluated("other", measured("knn", 40.0, 38.0, 42.0), measured("knn", 20.0, 18.0, 22.0, random=True, n_val=900))
    assert "--random" in about(other, "knn")[1]  # other pictures say nothing about these
    assert about(evaluated("largest", measured("knn", 41.0, 37.0, 45.0, majority=40.0)), "largest class")[0] == "bad"


def test_every_metric_has_its_floor(tmp_path):
    auroc = measured("linear", None, 0.44, 0.58, metric="auroc", auroc=0.51)
    assert about(run_folder(tmp_path / "a", falling(), evaluations=[auroc]), "guessing")[0] == "bad"
    r2 = measured("linear", None, 0.2, 0.4, metric="r2", r2=0.3)
    assert about(run_folder(tmp_path / "r", falling(), evaluations=[r2]), "R² 0.300")[0] == "note"
    below = measured("linear", None, -0.4, -0.2, metric="r2", r2=-0.3)
    assert about(run_folder(tmp_path / "b", falling(), evaluations=[below]), "always answering the mean")[0] == "bad"


def test_of_repeated_measurements_the_last_counts():
    rows = [measured("knn", 40.0, 38.0, 42.0), measured("knn", 41.0, 39.0, 43.0), measured("knn", 42.0, 40.0, 44.0, seed=1), {"protocol": "knn"}]
    assert [row["top1"] for row in newest(rows)] == [41.0, 42.0]


def test_a_fine_tuning_is_judged_on_pictures_that_do_not_teach(tmp_path):
    def tuned(name, **every):
        steps = {int(step[1:]): row for step, row in every.items()}
        return run_folder(tmp_path / name, falling(100, 2.0), config={"method": "finetune", "encoder": "runs/a"}, every=steps)

    good = tuned("good", s50={"top1": 50.0, "val_loss": 1.5, "majority": 12.0, "val_n": 300}, s100={"top1": 62.5, "val_loss": 1.2, "majority": 12.0, "val_n": 300})
    assert about(good, "62.5 %") == ("good", "top-1 on 300 pictures that do not teach: 62.5 % at step 100, beside 12.0 % for always answering the largest class.")
    assert about(good, "heart") is None and about(good, "baselines") is None
    heart = tuned("heart", s50={"top1": 10.0, "val_loss": 1.0, "majority": 12.0}, s100={"top1": 11.0, "val_loss": 1.6, "majority": 12.0})
    assert about(heart, "11.0 %")[0] == "bad" and about(heart, "by heart")[0] == "open"


def test_what_is_wrong_is_said(tmp_path):
    collapsed = run_folder(tmp_path / "collapsed", falling(), rank=1.2)
    assert about(collapsed, "collaps")[0] == "bad"
    assert "50%" in about(run_folder(tmp_path / "waiting", falling(), data_wait=0.5), "waited for data")[1]
    bad = run_folder(tmp_path / "bad", falling(), quarantine=[{"path": "x"}], every={7: {"skipped": True}})
    assert about(bad, "1 bad sample was") and about(bad, "1 step had a loss")


def test_knn_while_training_is_judged_beside_chance(tmp_path):
    def watched(name, last, count):
        return run_folder(tmp_path / name, falling(), every={0: {"knn": 20.0, "knn_random": 20.0, "knn_n": count}, 200: {"knn": last, "knn_n": count}})

    assert about(watched("few", 24.0, 50), "kNN while")[0] == "open"
    assert about(watched("many", 34.0, 500), "kNN while")[0] == "good"
    assert about(watched("lost", 10.0, 500), "kNN while")[0] == "bad"


def test_an_alarm_of_the_run_is_repeated(tmp_path):
    """A contrastive learner notices a collapse that the rank of its features does not show."""
    run = run_folder(tmp_path / "1", falling(), rank=9.0)
    assert about(run, "no collapse")[0] == "note"
    with (run / "log.txt").open("a") as log:
        log.write("12:00:00 warning: at step 12 no picture is told from another, pictures look alike to the encoder. Start again.\n")
    assert about(run, "no collapse") is None and about(run, "While it trained, at step 12 no picture is told from another")[0] == "bad"
