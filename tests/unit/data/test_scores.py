import pytest

from purerl.data.scores import normalized_score, reference


@pytest.mark.parametrize('name', ['hopper-medium-v2', 'Hopper-v5', 'package:Hopper-v5'])
def test_an_expert_has_100_and_a_random_policy_0(name):
    assert normalized_score(name, 3234.3) == pytest.approx(100)
    assert normalized_score(name, -20.272305) == pytest.approx(0)
    assert normalized_score(name, 0.0) == pytest.approx(0.6228876, rel=1e-5)


def test_the_longest_name_counts():
    assert reference('maze2d-umaze-v1') == (23.85, 161.86)
    assert reference('maze2d-umaze-dense-v1') == (68.537689, 193.66285642381482)
    assert reference('antmaze-umaze-v2') == (0.0, 1.0)
    assert reference('ant-medium-v2') == reference('Ant-v5') == (-325.6, 3879.7)


@pytest.mark.parametrize(
    'name', ['Pendulum-v1', 'pen-binary-v0', 'antmaze-large-navigate-singletask-v0', 'maze2d-v1']
)
def test_other_tasks_have_no_score(name):
    assert reference(name) is None
    assert normalized_score(name, 1.0) is None
