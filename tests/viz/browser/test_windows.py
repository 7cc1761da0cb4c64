import toy_results

from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.windows import Windows

ATLAS = Atlas([toy_results.dashboard()])
SITE = toy_results.SITES[0]


def test_windows_are_the_text_around_their_places():
    arrays = toy_results.dashboard().arrays
    contexts, place = arrays["contexts"], arrays[f"top_place/{SITE}"]
    for latent, windows in enumerate(Windows(ATLAS, 0, "top").of(0, 3)):
        for number, window in enumerate(windows):
            assert window is not None
            context, first, peak, tokens, acts = window
            at = int(place[latent, number])
            assert (context, first + peak) == divmod(at, toy_results.N_POS)
            last = min(first + peak + 2, toy_results.N_POS - 1)
            assert first == max(0, at % toy_results.N_POS - toy_results.N_BEFORE)
            assert tokens == contexts[context, first : last + 1].tolist()
            assert len(acts) == len(tokens)


def test_activations_are_in_thousandths_of_the_largest():
    (windows,) = Windows(ATLAS, 0, "top").of(5, 6)
    assert [window[4][window[2]] for window in windows if window] == [1000, 875, 750, 625, 500, 375]
    assert all(sum(window[4]) == window[4][window[2]] for window in windows if window)


def test_places_not_in_use_have_no_window():
    assert Windows(ATLAS, 0, "top").of(3, 4) == [[None] * 6]
    assert Windows(ATLAS, 0, "sample").of(0, 1)[0][:8] == [None] * 8
    assert Windows(Atlas([toy_results.evolution()]), 0, "top").of(0, 2) == [[], []]
