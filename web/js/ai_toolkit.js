// The pack's part of ComfyUI's page: nodes follow the model that is chosen. Graphs work without it.
import { app } from '../../../scripts/app.js'
import { showBadge } from './badge.js'
import { showSamples } from './compare.js'
import { cleanSaved, followModel, keepSize } from './inputs.js'
import { addShowAll, filterLoras, forgetLoras } from './loras.js'
import { allNodes, classOf, isOurs, LOADER, LORA, loadModels, modelOf } from './models.js'
import { clearNotes, setNote } from './notes.js'

let waiting = false

/** Brings every node of the pack into line with the model that its `model` input leads to. */
function refresh() {
  waiting = false
  for (const node of allNodes().filter(isOurs)) {
    const model = modelOf(node)
    followModel(node, model)
    if (classOf(node) === LOADER) showBadge(node, model)
    if (classOf(node) === LORA) filterLoras(node, model)
  }
}

/** Refreshes once, after all of what happens now. */
function refreshSoon() {
  if (!waiting) queueMicrotask(refresh)
  waiting = true
}

/**
 * Lets `extra` run after a method of an object, with the same arguments.
 * @param {object} object
 * @param {string} name
 * @param {(...args: any[]) => void} extra
 */
function after(object, name, extra) {
  const before = object[name]
  object[name] = function (...args) {
    const result = before?.apply(this, args)
    extra(...args)
    return result
  }
}

/** Shows what a run said of a node: a LoRA's report, compared samples. */
function showOutput(node, output) {
  if (classOf(node) === LORA && output?.text) setNote(node, 'report', output.text.join('\n'))
  if (output?.aitk_samples) showSamples(node, output.aitk_samples)
}

/** Shows on a node of the pack why it failed. */
function showError({ detail }) {
  const id = String(detail.node_id).split(':').at(-1) // in a subgraph, its number comes before
  const node = allNodes().find((one) => String(one.id) === id)
  if (node && isOurs(node)) setNote(node, 'error', String(detail.exception_message).trim())
}

app.registerExtension({
  name: 'aitoolkitinference.nodes',

  async init() {
    await loadModels()
  },

  setup() {
    app.api.addEventListener('execution_start', () => allNodes().forEach((node) => clearNotes(node, 'error')))
    app.api.addEventListener('execution_error', showError)
    app.api.addEventListener('graphChanged', refreshSoon)
    app.ui.settings.addEventListener('Comfy.VueNodes.Enabled.change', () => setTimeout(refreshSoon, 500))
  },

  nodeCreated(node) {
    if (!isOurs(node)) return
    if (classOf(node) === LORA) addShowAll(node, refreshSoon)
    for (const widget of node.widgets ?? []) {
      if (/^(model|lora_name)/.test(widget.name)) {
        after(widget, 'callback', () => {
          clearNotes(node, 'report')
          refreshSoon()
        })
      }
    }
    after(node, 'onConnectionsChange', refreshSoon)
    after(node, 'onConfigure', () => keepSize(node))
    after(node, 'onAfterGraphConfigured', refresh)
    after(node, 'onExecuted', (output) => showOutput(node, output))
    after(node, 'onSerialize', (data) => cleanSaved(node, data))
    refreshSoon()
  },

  onNodeOutputsUpdated(outputs) {
    for (const node of allNodes().filter(isOurs)) showOutput(node, outputs[node.id])
  },

  refreshComboInNodes() {
    forgetLoras()
    refreshSoon()
  }
})
