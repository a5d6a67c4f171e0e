// Inputs that a model has no use for are hidden, and those left at their default show what it is.
import { isConnected } from './models.js'

const LEFT_OPEN = { width: 0, height: 0, steps: 0, guidance_scale: -1, num_frames: 0, fps: 0, sampler: 'default' }
const NOWHERE = [-1e6, 0]

/** @type {WeakSet<object>} widgets that are hidden for a model's sake */
const hiddenHere = new WeakSet()
/** @type {WeakSet<object>} nodes whose size is the one they were saved with */
const justLoaded = new WeakSet()
/** @type {WeakMap<object, string>} widget -> what it shows while its value is left open */
const placeholders = new WeakMap()
/** @type {WeakMap<object, string | undefined>} widget -> its label before ours */
const labels = new WeakMap()

/**
 * Hides what the model has not, and shows its defaults. No value, link or order changes.
 * @param {object} node
 * @param {import('./models.js').Model | undefined} model undefined shows everything
 */
export function followModel(node, model) {
  const before = node.computeSize()[1]
  const hidden = hiddenInputs(node, model)
  const changed = [
    ...(node.widgets ?? []).map((widget) => setHidden(widget, hidden)),
    ...(node.inputs ?? []).map((input) => setSocketHidden(node, input, hidden)),
    ...(node.widgets ?? []).map((widget) => setDefault(widget, model?.defaults[widget.name])),
    setSamplers(node, model)
  ]
  const loaded = justLoaded.delete(node)
  if (changed.includes(true)) redraw(node, loaded ? 0 : node.computeSize()[1] - before)
}

/** Keeps the size of a node that was saved, whatever is hidden when it is first shown. */
export const keepSize = (node) => justLoaded.add(node)

/**
 * Takes out of a saved node what hides its sockets here: elsewhere they are to be seen.
 * @param {object} node
 * @param {object} data the node as it is saved
 */
export function cleanSaved(node, data) {
  for (const input of data.inputs ?? []) {
    if (input.widget && !hasWidget(node, input.name)) delete input.widget
  }
}

/** Names of the inputs to hide. What is connected stays, and so does a value that would be refused. */
function hiddenInputs(node, model) {
  const refused = (model?.refused ?? []).filter((name) => isUntouched(node, name))
  return new Set([...(model?.ignored ?? []), ...refused].filter((name) => !isConnected(node, name)))
}

/** Whether a widget has its default; so does what is no widget. */
function isUntouched(node, name) {
  const widget = node.widgets?.find((one) => one.name === name)
  if (!widget) return true
  const { required, optional } = node.constructor.nodeData?.input ?? {}
  const [kind, settings] = required?.[name] ?? optional?.[name] ?? []
  const list = Array.isArray(kind) ? kind : settings?.options
  return widget.value === (settings?.default ?? list?.[0])
}

const hasWidget = (node, name) => Boolean(node.widgets?.some((widget) => widget.name === name))

function setHidden(widget, names) {
  const hide = names.has(widget.name)
  if (hide === hiddenHere.has(widget)) return false
  if (hide) hiddenHere.add(widget)
  else hiddenHere.delete(widget)
  hideWidget(widget, hide)
  return true
}

/** Hides or shows a widget on the canvas and in Nodes 2.0, each of which has its own mark. */
export function hideWidget(widget, hide) {
  widget.hidden = hide
  widget.options.hidden = hide
  // older canvases keep the place of a hidden widget free; 4 is their gap
  if (hide) widget.computeSize = () => [0, -4]
  else delete widget.computeSize
}

/** A socket is not drawn while it seems to belong to a widget that is not there. */
function setSocketHidden(node, input, names) {
  if (hasWidget(node, input.name)) return false
  const hide = names.has(input.name)
  if (hide === Boolean(input.widget)) return false
  if (hide) {
    input.widget = { name: input.name }
    input.pos = NOWHERE
  } else {
    delete input.widget
    input.pos = undefined
  }
  return true
}

/** Shows what a value that is left open will be: instead of it on the canvas, as label in Nodes 2.0. */
function setDefault(widget, value) {
  if (!(widget.name in LEFT_OPEN)) return false
  if (!labels.has(widget)) {
    labels.set(widget, widget.label)
    replaceShownValue(widget)
  }
  const text = value === undefined ? undefined : String(value)
  const own = labels.get(widget)
  const label = text && LiteGraph.vueNodesMode ? `${own ?? widget.name} (${text})` : own
  if (placeholders.get(widget) === text && widget.label === label) return false
  placeholders.set(widget, text)
  widget.label = label
  return true
}

function replaceShownValue(widget) {
  const shown = getterOf(widget, '_displayValue')
  if (!shown) return
  Object.defineProperty(widget, '_displayValue', {
    configurable: true,
    get() {
      const text = placeholders.get(this)
      const open = text && this.value === LEFT_OPEN[this.name] && !this.computedDisabled
      return open ? `${text} (default)` : shown.call(this)
    }
  })
}

function getterOf(object, name) {
  for (let at = object; at; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, name)
    if (found) return found.get
  }
  return undefined
}

/** The sampler list has the model's names, and what is chosen now. */
function setSamplers(node, model) {
  const widget = node.widgets?.find((one) => one.name === 'sampler')
  if (!widget) return false
  return setChoices(widget, (name) => !model || name === LEFT_OPEN.sampler || model.samplers.includes(name))
}

const ALL = Symbol('all choices')

/**
 * Narrows a list to some of its choices; what is chosen now always stays.
 * @param {object} widget
 * @param {(name: string) => boolean} keep
 * @returns {boolean} whether the list is another now
 */
export function setChoices(widget, keep) {
  const now = widget.options.values
  if (!Array.isArray(now)) return false
  const all = now[ALL] ?? now
  const list = all.filter((name) => keep(name) || name === widget.value)
  if (list.length === now.length && list.every((name, index) => name === now[index])) return false
  widget.options.values = Object.assign(list, { [ALL]: all })
  return true
}

/**
 * Lets both renderers show a node's widgets and sockets anew.
 * @param {object} node
 * @param {number} growth of the least height, px; room that is there already is used first
 */
export function redraw(node, growth) {
  if (LiteGraph.vueNodesMode) {
    // widgets of newer pages tell of their changes themselves
    if (!node.widgets?.[0]?.visibility) nudge(node.widgets)
    nudge(node.inputs)
  } else if (growth) {
    const height = node.size[1] + Math.min(growth, 0)
    node.setSize([node.size[0], Math.max(height, node.computeSize()[1])])
  }
  node.graph?.setDirtyCanvas(true, true)
}

/** Makes Vue look at an array again, which does not see what changes inside of its items. */
function nudge(array) {
  if (!array?.length) return
  array.push(array[0])
  array.pop()
}
