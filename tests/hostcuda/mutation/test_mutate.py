"""Do the mutations reach every kernel, and does each explained survivor still stand in the source?"""

from collections import Counter

import mutate
import pytest

MUTANTS = [mutant for file in mutate.FILES for mutant in mutate.mutants_of(file)]
SOURCES = {path.name for pattern in ("*.cu", "*.cuh") for path in mutate.KERNELS.glob(pattern)}


def test_there_are_many_of_every_kind():
    assert len(MUTANTS) > 200
    assert set(mutate.FILES) == SOURCES
    for kind in ("operator", "file"):
        assert min(Counter(getattr(mutant, kind) for mutant in MUTANTS).values()) >= 10
    assert len(set(MUTANTS)) == len(MUTANTS)


def test_every_mutant_changes_its_line_alone():
    for mutant in MUTANTS[::50]:
        before = (mutate.KERNELS / mutant.file).read_text(encoding="utf-8").splitlines()
        after = mutant.text().splitlines()
        assert [n for n, pair in enumerate(zip(before, after, strict=True), 1) if pair[0] != pair[1]] == [mutant.line]


def test_explanations_are_of_mutants_that_exist():
    """An edit of a kernel also asks for a new look at what was said of the line."""
    known = {(mutant.file, mutant.before.strip(), mutant.after.strip()) for mutant in MUTANTS}
    explained = mutate.explanations()
    assert set(explained) <= known
    assert len(explained) < (1 - mutate.LEAST) * len(MUTANTS)
    assert all(explained.values())


@pytest.mark.parametrize(("fates", "code"), [("kk", 0), ("ks", 1), ("k" * 19 + "e", 0), ("kke", 1), ("kb", 0)])
def test_the_verdict(capsys, fates, code):
    """k killed, s survived, e survived and explained, b stillborn: 95 % must be killed and no survivor unexplained."""
    explained = mutate.explanations()
    known = next(m for m in MUTANTS if (m.file, m.before.strip(), m.after.strip()) in explained)
    usual = known._replace(after="changed otherwise")
    words = {"k": mutate.KILLED, "s": mutate.SURVIVED, "e": mutate.SURVIVED, "b": mutate.STILLBORN}
    mutants = [known if fate == "e" else usual for fate in fates]
    assert mutate.report(mutants, [words[fate] for fate in fates]) == code
    assert "mutants that compile" in capsys.readouterr().out
