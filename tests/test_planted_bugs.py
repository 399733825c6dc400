"""Does each planted bug still fit the source, and is its test still there?"""

import ast

import pytest
from planted_bugs import BUGS, ROOT, found, named, planted


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_each_bug_has_one_place_and_one_test(bug):
    source = (ROOT / bug.file).read_text()
    assert len(found(bug, source)) == 1
    wrong = planted(bug, source)
    assert wrong != source
    if bug.file.endswith(".py"):
        ast.parse(wrong)
    assert len(named(bug.test, ROOT)) == 1


def test_layout_and_comments_do_not_matter():
    bug = BUGS[0]
    assert len(found(bug, bug.right.replace(", ", ",  # why\n        "))) == 1
