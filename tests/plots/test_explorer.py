"""The interactive page of a latent space agrees with PyTorch and reacts to input, in a real browser."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.networks import mlp
from tests.conftest import small_vae

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1100,800",
]  # fmt: skip
LATENT = 3


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed, which drives a browser")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or (driver := shutil.which("chromedriver")) is None:
        pytest.skip("no Chromium is installed that a test could drive: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def open_page(browser: Any, vae: Any, folder: Path, **options: Any) -> None:
    browser.get(pv.plots.explorer(vae, folder / "explorer.html", **options).as_uri())
    settle(browser)


def settle(browser: Any) -> None:
    """Wait until the requested image is drawn."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def code(browser: Any) -> Tensor:
    return torch.tensor(browser.execute_script("return explorer.code()"))


def pixels(browser: Any, canvas: str = "image") -> Tensor:
    """Red, green and blue of a canvas, shape ``(height, width, 3)``."""
    script = """
        const canvas = document.getElementById(arguments[0]);
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, [...data]];"""
    height, width, values = browser.execute_script(script, canvas)
    return torch.tensor(values).reshape(height, width, 4)[..., :3]


def with_likelihood(likelihood: Any, latent: int = LATENT) -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(latent), likelihood, pv.posteriors.DiagonalNormal(mlp((4, 4), 2 * latent)))


class Everything(nn.Module):
    """A network with layers that the networks of the package do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 32), nn.LayerNorm(32), nn.Mish(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.SELU(),
            nn.Dropout(), nn.Unflatten(-1, (4, 2, 2)), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), nn.Softmax(1), nn.PixelShuffle(2), nn.ZeroPad2d(1),
            nn.Conv2d(2, 6, (3, 2), stride=2, bias=False), nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
            nn.Flatten(-3, -1), nn.LazyLinear(16), nn.Unflatten(-1, (4, 4)),
        )  # fmt: skip
        self.network = pv.networks.Batched(self.layers, 1)

    def forward(self, z: Tensor) -> Any:
        x = self.network(z)
        x[..., 0] += torch.stack([z.sum(-1)] * 4, -1)  # in place
        top = torch.cat([x[..., :2, :].flip(-1), x[..., 2:, :].roll(1, -1)], -2)
        return dist.Normal(torch.where(top > 0, top, top.amax((-2, -1), keepdim=True)), 1.0).to_event(2)


ACTIVATIONS = [
    nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU, nn.SiLU,
    nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
]  # fmt: skip


def likelihoods() -> dict[str, Any]:
    conv, residual, unit = pv.networks.conv_decoder, pv.networks.residual_decoder, 1 / 16
    named = {
        "gated": pv.likelihoods.Bernoulli(pv.networks.gated_mlp(LATENT, 8, 8, (4, 4))),
        "convolutional": pv.likelihoods.Bernoulli(conv(LATENT, 8, 4, out_shape=(8, 8))),
        "residual": pv.likelihoods.Normal(residual(LATENT, 4, 3, out_shape=(3, 7, 8), activation=nn.ELU)),
        "Normal": pv.likelihoods.Normal(mlp(LATENT, 8, (4, 8)), None),
        "StudentT": pv.likelihoods.StudentT(mlp(LATENT, 8, (4, 4))),
        "Beta": pv.likelihoods.Beta(mlp(LATENT, 8, (4, 8))),
        "ContinuousBernoulli": pv.likelihoods.ContinuousBernoulli(mlp(LATENT, 8, (4, 4))),
        "Binomial": pv.likelihoods.Binomial(mlp(LATENT, 8, (4, 4)), 16, unit=unit),
        "Poisson": pv.likelihoods.Poisson(mlp(LATENT, 8, (4, 4)), unit=unit),
        "NegativeBinomial": pv.likelihoods.NegativeBinomial(mlp(LATENT, 8, (4, 8)), unit=unit),
        "Categorical": pv.likelihoods.Categorical(mlp(LATENT, 8, (4, 4 * 17)), 17, unit=unit),
        "DiscretizedLogistic": pv.likelihoods.DiscretizedLogistic(mlp(LATENT, 8, (4, 8)), 17, unit=unit),
        "mixture": pv.likelihoods.DiscretizedLogisticMixture(mlp(LATENT, 8, (4, 6 * 4)), 2, 17, unit=unit),
        "layers of all kinds": Everything(),
    }
    dense = {
        activation.__name__: pv.likelihoods.Bernoulli(mlp(LATENT, 16, 16, (4, 4), activation=activation))
        for activation in ACTIVATIONS
    }
    return {**named, **dense}


@pytest.mark.parametrize("name", likelihoods())
def test_the_page_decodes_as_pytorch_does(browser: Any, tmp_path: Path, name: str) -> None:
    vae = with_likelihood(likelihoods()[name]).eval()
    z = 2 * torch.randn(5, LATENT)
    open_page(browser, vae, tmp_path)
    # In double precision: torch's float32 mean of a continuous Bernoulli is itself off by 1e-3 near one half.
    with torch.no_grad():
        expected = copy.deepcopy(vae.likelihood).double()(z.double()).mean.flatten(1)
        single = vae.likelihood(z).mean.flatten(1)
    decoded = torch.tensor([browser.execute_script("return explorer.decode(arguments[0])", row) for row in z.tolist()])
    assert expected.std() > 1e-3
    torch.testing.assert_close(decoded, expected.float(), atol=1e-5, rtol=1e-5)
    if name != "ContinuousBernoulli":
        torch.testing.assert_close(decoded, single, atol=1e-4, rtol=1e-4)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_dragging_in_the_plane_moves_the_code_and_the_image_follows(browser: Any, tmp_path: Path, kind: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    vae = with_likelihood(pv.likelihoods.Bernoulli(mlp(LATENT, 16, (4, 4), activation=nn.Tanh)))
    open_page(browser, vae, tmp_path, plane=(0, 2))
    before, image_before = code(browser), pixels(browser)
    plane = browser.find_element("id", "plane")
    size = plane.rect["width"]
    hand = ActionChains(browser, devices=[PointerInput(kind, kind)])
    hand.move_to_element_with_offset(plane, 0, 0).click_and_hold().move_by_offset(20, 20)
    hand.move_to_element_with_offset(plane, round(size / 4), round(-size / 8)).release()
    hand.move_to_element_with_offset(plane, 0, 0).perform()  # let go, it moves no more
    settle(browser)
    after = code(browser)
    torch.testing.assert_close(after[[0, 2]], torch.tensor([1.5, 0.75]), atol=6 * 2 / size, rtol=0)  # two pixels
    assert after[1] == before[1]
    with torch.no_grad():
        ink = 1 - vae.likelihood(after).mean
    shown = pixels(browser)
    assert (shown - 255 * ink[..., None]).abs().max() <= 0.51
    assert (shown - image_before).abs().max() > 5
    rows = browser.find_elements("css selector", "#code output")
    assert [row.text for row in rows] == [f"{value:.2f}".replace("-", "\u2212") for value in after.tolist()]


def test_a_slider_moves_its_own_dimension(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    vae = with_likelihood(pv.likelihoods.Bernoulli(mlp(5, 16, (4, 4), activation=nn.Tanh)), latent=5)
    open_page(browser, vae, tmp_path)
    before, sliders = code(browser), browser.find_elements("css selector", "#code input")
    assert len(sliders) == 5
    ActionChains(browser).move_to_element(sliders[3]).click_and_hold().move_by_offset(40, 0).release().perform()
    settle(browser)
    after = code(browser)
    assert 0.5 < after[3] < 2.5
    assert (after != before).nonzero().flatten().tolist() == [3]
    with torch.no_grad():
        assert (pixels(browser) - 255 * (1 - vae.likelihood(after).mean[..., None])).abs().max() <= 0.51


def test_keys_and_buttons(browser: Any, tmp_path: Path) -> None:
    open_page(browser, small_vae(size=(4, 4)), tmp_path, seed=3)
    draws = torch.tensor(json.loads(browser.find_element("id", "latents").get_attribute("textContent"))["draws"])
    assert torch.equal(code(browser), draws[0])
    browser.find_element("id", "draw").click()
    assert torch.equal(code(browser), draws[1])
    browser.find_element("id", "plane").send_keys("\ue014\ue014")  # the right arrow, twice
    torch.testing.assert_close(code(browser), draws[1] + torch.tensor([0.2, 0.0]))
    settle(browser)
    ink = pixels(browser)
    browser.find_element("id", "invert").click()
    settle(browser)
    assert (pixels(browser) + ink - 255).abs().max() <= 1


def test_the_plane_shows_a_map_of_what_lies_where(browser: Any, tmp_path: Path) -> None:
    def likelihood(z: Tensor) -> Any:
        """An image that is black in the right half of the plane and white in the left half."""
        return dist.Normal((1000 * z[..., :1, None]).sigmoid().expand(*z.shape[:-1], 4, 4), 1.0).to_event(2)

    open_page(browser, with_likelihood(likelihood), tmp_path, plane=(0, 1))
    for _ in range(30):
        settle(browser)
    shades = pixels(browser, "plane").double().mean((0, 2))
    half = len(shades) // 2
    assert shades[: half - 20].mean() > shades[half + 20 :].mean() + 60


def test_colour_and_flat_images(browser: Any, tmp_path: Path) -> None:
    colour = pv.VAE(pv.priors.GaussianMixture(2, 3), pv.likelihoods.Normal(mlp(2, 8, (3, 4, 5))), lambda x: None)
    open_page(browser, colour, tmp_path)
    with torch.no_grad():
        expected = 255 * colour.likelihood(code(browser)).mean.permute(1, 2, 0).clamp(0, 1)
    assert (pixels(browser) - expected).abs().max() <= 0.51
    flat = small_vae(size=20, latent=1)  # one dimension has no plane
    open_page(browser, flat, tmp_path, shape=(4, 5))
    assert pixels(browser).shape == (4, 5, 3)
    assert not browser.find_element("id", "planar").is_displayed()


def test_the_page_needs_nothing_but_itself(browser: Any, tmp_path: Path) -> None:
    open_page(browser, small_vae(size=(4, 4)), tmp_path, title="<Digits> & {{network}}")
    assert browser.title == "<Digits> & {{network}}"
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert "://" not in (tmp_path / "explorer.html").read_text()


def test_the_plane_starts_with_the_dimensions_that_change_the_image_most(tmp_path: Path) -> None:
    weight = torch.tensor([0.1, 3.0, 0.0, 2.0])
    vae = with_likelihood(lambda z: dist.Normal((z * weight).reshape(*z.shape[:-1], 2, 2), 1.0).to_event(2), latent=4)
    page = pv.plots.explorer(vae, tmp_path / "explorer.html").read_text()
    assert re.search(r'"ranges":(.*?),"plane":(.*?),', page).group(1) == str([[-3.0, 3.0]] * 4).replace(" ", "")
    assert '"plane":[1,3]' in page


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    vae = with_likelihood(Everything()).train()
    vae.likelihood(torch.randn(2, LATENT))
    state, generator = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    first = pv.plots.explorer(vae, tmp_path / "first.html").read_bytes()
    assert first == pv.plots.explorer(vae, tmp_path / "second.html").read_bytes()
    assert vae.training
    assert vae.likelihood.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(state[name], value) for name, value in vae.state_dict().items())


class Sorted(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z.sort(-1).values.unsqueeze(-1), 1.0).to_event(2)


class Noisy(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.Normal((z + torch.randn_like(z)).unsqueeze(-1), 1.0).to_event(2)


class Converted(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.Normal((2 * z.double()).float().unsqueeze(-1), 1.0).to_event(2)


class Rounded(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z.long().float().unsqueeze(-1), 1.0).to_event(2)


class NoMean(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.TransformedDistribution(dist.Normal(z.unsqueeze(-1), 1.0), []).to_event(2)


@pytest.mark.parametrize(
    ("vae", "options", "message"),
    [
        (
            small_vae(16),
            {},
            r"a datum has shape \(16,\)\. If the datum is a flattened image, pass shape=\(height, width\)",
        ),
        (
            small_vae(16),
            {"shape": (5, 4)},
            r"a datum of shape \(16,\) is not an image of shape=\(5, 4\), because the numbers of",
        ),
        (small_vae((2, 4, 4)), {}, r"\(1, height, width\) or \(3, height, width\), but a datum has shape \(2, 4, 4\)$"),
        (small_vae((4, 4)), {"plane": (0, 2)}, r"2 latent dimensions, counted from 0, got \(0, 2\)"),
        (small_vae((4, 4)), {"plane": (1, 1)}, r"2 latent dimensions, counted from 0, got \(1, 1\)"),
        (with_likelihood(Sorted()), {}, "the page has no kernel for aten.sort.default"),
        (
            with_likelihood(Noisy()),
            {},
            "the page cannot draw random numbers, but the mean of the likelihood does",
        ),
        (with_likelihood(Rounded()), {}, "converts floating-point numbers to integers or bool"),
        (with_likelihood(NoMean()), {}, "a Independent has no mean. Add the property mean"),
    ],
)
def test_models_that_cannot_be_shown_are_refused(tmp_path: Path, vae: pv.VAE, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pv.plots.explorer(vae, tmp_path / "explorer.html", **options)
    assert not list(tmp_path.iterdir())


def test_a_mean_may_convert_between_floating_point_dtypes(tmp_path: Path) -> None:
    assert pv.plots.explorer(with_likelihood(Converted()), tmp_path / "explorer.html").exists()


def test_a_prior_of_something_else_is_refused(tmp_path: Path) -> None:
    vae = small_vae((4, 4))
    vae.prior = dist.OneHotCategorical(torch.ones(2))
    with pytest.raises(
        ValueError, match=r"a prior over vectors of real numbers\. The prior is a OneHotCategorical with"
    ):
        pv.plots.explorer(vae, tmp_path / "explorer.html")
    vae.prior = dist.Normal(torch.zeros(2, 1), 1.0).to_event(2)
    with pytest.raises(ValueError, match=r"event shape \(2, 1\)"):
        pv.plots.explorer(vae, tmp_path / "explorer.html")


def test_a_model_of_several_latents_is_refused(tmp_path: Path) -> None:
    layers = [mlp(2, 2 * 2), mlp(2, (4, 4)), mlp((4, 4), 2 * 2), mlp(2, 2 * 2)]
    normals = [pv.posteriors.DiagonalNormal(layer) for layer in layers]
    vae = pv.HierarchicalVAE(
        [pv.priors.StandardNormal(2), normals[0]], pv.likelihoods.Bernoulli(layers[1]), normals[2:]
    )
    with pytest.raises(TypeError, match="one prior and one likelihood, but a HierarchicalVAE has no prior"):
        pv.plots.explorer(vae, tmp_path / "explorer.html")


def test_a_likelihood_of_something_beside_z_is_refused(tmp_path: Path) -> None:
    joint = pv.networks.Joint(mlp(5, (4, 4)), event_dims=(1, 1))
    with pytest.raises(ValueError, match=r"got 1 inputs.* has 2 entries"):
        pv.plots.explorer(with_likelihood(pv.likelihoods.Bernoulli(joint)), tmp_path / "explorer.html")
    masked = pv.likelihoods.Masked(pv.likelihoods.Bernoulli(mlp(LATENT, (4, 4))))
    with pytest.raises(TypeError, match="does not take the 1 inputs"):
        pv.plots.explorer(with_likelihood(masked), tmp_path / "explorer.html")
