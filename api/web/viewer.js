// One slide in OpenSeadragon, with a scale bar where its resolution is known. The slide is the one in
// the page's own address: /slides/{id}/view.
'use strict';

const id = location.pathname.split('/').at(-2);
const api = '../../v1/slides/' + id;

show().catch((err) => report(err.message));

async function show() {
  const answer = await fetch(api);
  const slide = await answer.json();
  if (!answer.ok) {
    return report(slide.detail + (slide.hint ? ` (${slide.hint})` : ''));
  }
  const mpp = slide.mpp.value;
  document.title = slide.name + ' · Coverslip';
  element('name').textContent = slide.name;
  element('facts').textContent = [
    `${slide.width} × ${slide.height} pixels`,
    mpp ? `${+mpp.toPrecision(4)} µm per pixel` : 'resolution unknown',
    slide.objective_power ? `${slide.objective_power}×` : '',
  ].filter(Boolean).join(', ');

  const viewer = OpenSeadragon({
    element: element('viewer'),
    tileSources: api + '/dzi',
    showNavigationControl: false, // its buttons are pictures; mouse, touch and keys do the same
    showNavigator: true,
    drawer: 'canvas', // WebGL gains nothing for one picture, and is slow where there is no GPU
    maxZoomPixelRatio: 4,
  });
  viewer.addHandler('open-failed', (e) => report(e.message));
  viewer.addHandler('tile-load-failed', (e) => report(`A part of the slide cannot be shown: ${e.message}`));
  viewer.addHandler('open', () => {
    const item = viewer.world.getItemAt(0);
    item.addHandler('fully-loaded-change', (e) => {
      document.documentElement.dataset.state = e.fullyLoaded ? 'shown' : 'loading';
    });
  });
  if (mpp) {
    viewer.addHandler('update-viewport', () => drawScale(mpp / viewer.viewport.viewportToImageZoom(viewer.viewport.getZoom(true))));
  }
}

// drawScale draws a bar of a round length, at most 160 pixels, for so many µm per pixel of the screen.
function drawScale(umPerPixel) {
  const most = 160 * umPerPixel;
  const power = 10 ** Math.floor(Math.log10(most));
  const um = power * [5, 2, 1].find((n) => n * power <= most);
  const bar = element('scale');
  bar.hidden = false;
  bar.firstElementChild.style.width = um / umPerPixel + 'px';
  bar.firstElementChild.textContent = um >= 1000 ? `${um / 1000} mm` : `${+um.toPrecision(1)} µm`;
}

function report(text) {
  element('problem').textContent = text;
  element('problem').hidden = false;
  document.documentElement.dataset.state = 'failed';
}

function element(name) {
  return document.getElementById(name);
}
