// What the server knows of models, and which of them a node of the graph works with.
import { app } from '../../../scripts/app.js'

export const LOADER = 'LoadAIToolkitModel'
export const LORA = 'ApplyAIToolkitLoRA'
const SOCKET = 'AITK_MODEL'
const MOST_STEPS = 100

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {string} title
 * @property {Record<string, number | string>} defaults by the names of the sampler's inputs
 * @property {string[]} samplers
 * @property {string[]} ignored inputs that change nothing
 * @property {string[]} refused inputs that may only have their default
 * @property {{exact: number, pictures: number, most: number}=} measured
 */

/** @type {Map<string, Model>} */
const models = new Map()

/** Fetches what the pack's server part tells of its models; without an answer nothing is changed. */
export async function loadModels() {
  const [told, measured] = await Promise.all([
    getJson(app.api.fetchApi('/ai_toolkit/models')),
    getJson(fetch(new URL('../exactness.json', import.meta.url)))
  ])
  for (const [id, model] of Object.entries(told ?? {})) {
    models.set(id, { ...model, id, measured: measured?.[id] })
  }
}

/**
 * The JSON of an answer; undefined, with a line in the console, if there is none.
 * @param {Promise<Response>} request
 */
export async function getJson(request) {
  try {
    const response = await request
    if (response.ok) return await response.json()
    console.warn(`AI Toolkit: ${response.url} answered ${response.status}`)
  } catch (error) {
    console.warn('AI Toolkit:', error)
  }
  return undefined
}

/** Every node of the graph and of its subgraphs. */
export function allNodes() {
  const root = app.rootGraph ?? app.graph
  if (!root) return []
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => [...graph.nodes])
}

/** The name of a node's class; a node that is being made has no type yet. */
export const classOf = (node) => node.comfyClass ?? node.type ?? ''

/** Whether a node is one of the pack's. */
export const isOurs = (node) => /AIToolkit/.test(classOf(node))

/** Whether something is connected to an input, by its name. */
export function isConnected(node, name) {
  const index = node.inputs?.findIndex((input) => input.name === name) ?? -1
  return index >= 0 && node.isInputConnected(index)
}

/**
 * The model whose recipe arrives at a node (or starts there).
 * @returns {Model | undefined} undefined where the graph alone does not tell
 */
export function modelOf(node) {
  for (let step = 0; node && step < MOST_STEPS; step++) {
    if (classOf(node) === LOADER) {
      const chosen = node.widgets?.find((widget) => widget.name === 'model')
      return isConnected(node, 'model') ? undefined : models.get(chosen?.value)
    }
    const index = node.inputs?.findIndex((input) => input.type === SOCKET || classOf(node) === 'Reroute') ?? -1
    if (index < 0) return undefined
    node = node.getInputNode(index)
  }
  return undefined
}
