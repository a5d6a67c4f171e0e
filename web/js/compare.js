// The trainer's sample over the rendered one, with a line between them that follows the pointer.
import { app } from '../../../scripts/app.js'
import { redraw } from './inputs.js'

const NAME = 'ai_toolkit_compare'
const LEAST_HEIGHT = 300 // px

/**
 * @typedef {{filename: string, subfolder: string, type: string}} File
 * @typedef {{index: number, verdict: string, trainer: File, rendered: File, heatmap: File}} Sample
 */

/**
 * Shows compared samples on a node.
 * @param {object} node
 * @param {Sample[]} samples
 */
export function showSamples(node, samples) {
  if (!samples.length) return
  const before = node.computeSize()[1]
  const old = node.widgets?.find((widget) => widget.name === NAME)
  const element = old?.element ?? addWidget(node)
  element.replaceChildren(...makeView(samples))
  if (!old) redraw(node, node.computeSize()[1] - before)
}

function addWidget(node) {
  const element = make('div', { className: 'ai-toolkit-compare' })
  Object.assign(element.style, {
    display: 'flex',
    flexDirection: 'column',
    gap: '4px',
    minHeight: `${LEAST_HEIGHT - 20}px`,
    color: 'var(--input-text, #ddd)',
    font: '12px/16px sans-serif'
  })
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => LEAST_HEIGHT }
  node.addDOMWidget(NAME, 'compare', element, options).serialize = false
  return element
}

/** The elements of the view: stage, slider, and what is shown. */
function makeView(samples) {
  let at = 0
  const over = picture()
  const under = picture()
  const line = make('div')
  Object.assign(line.style, { position: 'absolute', top: 0, bottom: 0, width: '2px', background: '#fff' })
  const right = tag('right', '')
  const stage = make('div', {}, over, under, line, tag('left', 'trainer'), right)
  Object.assign(stage.style, {
    position: 'relative',
    flex: '1 1 0',
    minHeight: '200px',
    overflow: 'hidden',
    borderRadius: '4px',
    background: '#111',
    cursor: 'ew-resize',
    touchAction: 'none'
  })
  const slider = make('input', { type: 'range', min: '0', max: '100', step: '0.1', value: '50' })
  slider.ariaLabel = 'Where the trainer\'s picture ends and the rendered one starts'
  const heat = make('input', { type: 'checkbox' })
  const said = make('span')
  said.style.flex = '1'

  const split = (percent) => {
    slider.value = String(Math.min(100, Math.max(0, percent)))
    under.style.clipPath = `inset(0 0 0 ${slider.value}%)`
    line.style.left = `calc(${slider.value}% - 1px)`
  }
  const show = (index) => {
    at = (index + samples.length) % samples.length
    const sample = samples[at]
    over.src = address(sample.trainer)
    under.src = address(heat.checked ? sample.heatmap : sample.rendered)
    right.textContent = heat.checked ? 'differences' : 'rendered'
    said.textContent = `${at + 1} of ${samples.length} (sample ${sample.index}): ${sample.verdict}`
  }
  slider.oninput = () => split(Number(slider.value))
  heat.onchange = () => show(at)
  stage.onpointerdown = (event) => stage.setPointerCapture(event.pointerId)
  stage.onpointermove = (event) => {
    const { left, width } = stage.getBoundingClientRect()
    split(((event.clientX - left) / width) * 100)
  }
  const row = make('div', {}, said, make('label', {}, heat, ' differences'))
  if (samples.length > 1) row.prepend(step('\u2039', -1), step('\u203a', 1))
  Object.assign(row.style, { display: 'flex', alignItems: 'center', gap: '6px' })
  split(50)
  show(0)
  return [stage, slider, row]

  function step(text, by) {
    const button = make('button', { type: 'button', textContent: text, onclick: () => show(at + by) })
    button.ariaLabel = by > 0 ? 'next sample' : 'previous sample'
    return button
  }
}

function picture() {
  const image = make('img', { draggable: false, alt: '' })
  Object.assign(image.style, { position: 'absolute', inset: 0, width: '100%', height: '100%', objectFit: 'contain' })
  return image
}

function tag(side, text) {
  const element = make('span', { textContent: text })
  Object.assign(element.style, {
    position: 'absolute',
    top: '4px',
    [side]: '4px',
    padding: '1px 6px',
    borderRadius: '4px',
    background: '#000a',
    color: '#fff',
    pointerEvents: 'none'
  })
  return element
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties)
  element.append(...children)
  return element
}

const address = (file) => app.api.apiURL(`/view?${new URLSearchParams(file)}`)
