// A few lines of text at the foot of a node: what a LoRA holds, how exact a model is, what went wrong.
import { hideWidget, redraw } from './inputs.js'

const NAME = 'ai_toolkit_note'
const LINE = 16 // px
const MOST_LINES = 12
const CHARACTER = 6.6 // px, on average
const COLOURS = { error: '#e5484d', report: '#6e7f99', warning: '#e5a13a', exact: '#3fa66b', measured: '#e5a13a' }

/** The kinds of notes, the one that goes first at the start. */
const KINDS = ['error', 'report', 'warning', 'exact', 'measured']

/** @type {WeakMap<object, Record<string, string>>} node -> kind -> text */
const notes = new WeakMap()

/**
 * Shows a text on a node, until another of its kind or none is given; one kind is shown at a time.
 * @param {object} node
 * @param {'error' | 'report' | 'warning' | 'exact' | 'measured'} kind
 * @param {string} text
 */
export function setNote(node, kind, text) {
  const kept = notes.get(node) ?? {}
  if ((kept[kind] ?? '') === text) return
  notes.set(node, { ...kept, [kind]: text })
  draw(node)
}

/** Takes notes of these kinds away from a node. */
export function clearNotes(node, ...kinds) {
  for (const kind of kinds) setNote(node, kind, '')
}

function draw(node) {
  const kept = notes.get(node)
  const kind = KINDS.find((one) => kept[one])
  const widget = node.widgets?.find((one) => one.name === NAME) ?? addWidget(node)
  const before = node.computeSize()[1]
  hideWidget(widget, !kind)
  widget.element.textContent = kind ? kept[kind] : ''
  widget.element.dataset.kind = kind ?? ''
  widget.element.style.borderLeftColor = COLOURS[kind] ?? 'transparent'
  redraw(node, node.computeSize()[1] - before)
}

function addWidget(node) {
  const element = document.createElement('div')
  element.setAttribute('role', 'status')
  element.className = 'ai-toolkit-note'
  Object.assign(element.style, {
    boxSizing: 'border-box',
    padding: '3px 8px',
    borderLeft: '3px solid transparent',
    borderRadius: '4px',
    background: 'var(--comfy-input-bg, #222)',
    color: 'var(--input-text, #ddd)',
    font: `12px/${LINE}px sans-serif`,
    whiteSpace: 'pre-wrap',
    overflowWrap: 'anywhere',
    overflowY: 'auto',
    maxHeight: `${LINE * MOST_LINES + 6}px`,
    userSelect: 'text'
  })
  const height = () => LINE * linesOf(element.textContent, node.size[0]) + 6 + 2 * MARGIN
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height }
  const widget = node.addDOMWidget(NAME, 'note', element, options)
  widget.serialize = false
  return widget
}

const MARGIN = 8 // px around the text, on the canvas

/** How many lines a text takes on a node of this width, px. */
function linesOf(text, width) {
  const most = Math.max(10, Math.floor((width - 2 * MARGIN - 20) / CHARACTER))
  const lines = text.split('\n').map((line) => Math.max(1, Math.ceil(line.length / most)))
  return Math.min(MOST_LINES, lines.reduce((sum, count) => sum + count, 0))
}
