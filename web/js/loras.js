// The LoRA lists show what fits the model, as the files' headers tell; a switch shows the rest.
import { app } from '../../../scripts/app.js'
import { hideWidget, redraw, setChoices } from './inputs.js'
import { getJson } from './models.js'
import { setNote } from './notes.js'

const SHOW_ALL = 'show_all_files'
const LISTS = ['lora_name', 'lora_name_low']

/** @typedef {{fits: boolean | null, made_for: string}} File */

/** @type {Map<string, Promise<Record<string, File>>>} model id -> file name -> what its header tells */
const answers = new Map()

/** Asks the server again at the next need, for the folder may have changed. */
export const forgetLoras = () => answers.clear()

/**
 * Adds the switch that shows files for other models, too. It is kept in the node's properties, so that
 * the saved values are those of a page without this script.
 */
export function addShowAll(node, changed) {
  const set = (value) => {
    node.properties[SHOW_ALL] = value
    changed()
  }
  const widget = node.addWidget('toggle', SHOW_ALL, false, set, { serialize: false })
  widget.serialize = false
  hideWidget(widget, true)
}

/**
 * Narrows the LoRA lists of a node to what fits its model, as soon as the server has answered.
 * @param {object} node
 * @param {import('./models.js').Model | undefined} model
 */
export async function filterLoras(node, model) {
  const files = model ? await filesFor(model.id) : {}
  if (node.graph) narrow(node, model, files ?? {})
}

function filesFor(id) {
  if (!answers.has(id)) {
    const query = new URLSearchParams({ model: id })
    answers.set(id, getJson(app.api.fetchApi(`/ai_toolkit/loras?${query}`)))
  }
  return answers.get(id)
}

function narrow(node, model, files) {
  const before = node.computeSize()[1]
  const all = Boolean(node.properties[SHOW_ALL])
  const fits = (name) => files[name]?.fits !== false
  const lists = node.widgets.filter((widget) => LISTS.includes(widget.name))
  const changed = lists.map((widget) => setChoices(widget, (name) => all || fits(name)))
  changed.push(setSwitch(node, all, Object.keys(files).filter((name) => !fits(name)).length))
  setNote(node, 'warning', warning(lists, model, files))
  if (changed.includes(true)) redraw(node, node.computeSize()[1] - before)
}

function setSwitch(node, value, count) {
  const widget = node.widgets.find((one) => one.name === SHOW_ALL)
  const label = `all files (${count} more)`
  if (widget.value === value && widget.label === label && widget.hidden === !count) return false
  widget.value = value
  widget.label = label
  hideWidget(widget, !count)
  return true
}

/** What is to be said of files that are chosen though they do not fit. */
function warning(lists, model, files) {
  return lists
    .filter((widget) => !widget.hidden && files[widget.value]?.fits === false)
    .map(({ value }) =>
      files[value].made_for
        ? `${value} was made for ${files[value].made_for}, not for ${model.title}.`
        : `${value} is no LoRA that can be read.`
    )
    .join('\n')
}
