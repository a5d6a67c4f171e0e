// How the pack's nodes follow the chosen model on ComfyUI's real page, in a headless Chromium.
//
//   node widgets_check.mjs URL --shots PREFIX --graph FILE --job FILE [--nodes2] [--timeout SECONDS]
//
// --graph: a FLUX graph of LoadAIToolkitModel, ApplyAIToolkitLoRA, AIToolkitSample, SaveImage; --job: one
// that ends in AIToolkitCompareSamples. --nodes2: with the nodes that are made of HTML.
// Prints one JSON report of what was seen at each step, each with a picture PREFIX-STEP.png.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { launch, openEditor, openFile, openPage, ownErrors, run, showGraph } from './page.mjs'

const LOADER = 'LoadAIToolkitModel'
const LORA = 'ApplyAIToolkitLoRA'
const SAMPLE = 'AIToolkitSample'
const COMPARE = 'AIToolkitCompareSamples'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shots: { type: 'string' },
    graph: { type: 'string' },
    job: { type: 'string' },
    nodes2: { type: 'boolean', default: false },
    timeout: { type: 'string', default: '120' }
  }
})
const url = positionals[0]
const timeout = Number(options.timeout) * 1000

/** What a user sees of the pack's nodes, and what would be saved of them. */
const look = (page) =>
  page.evaluate(async () => {
    const shown = (widget) => !widget.hidden && !widget.options?.hidden
    const prompt = (await window.app.graphToPrompt()).output
    const one = (node) => {
      const saved = node.serialize()
      const html = document.querySelector(`[data-node-id="${node.id}"]`)
      const note = node.widgets?.find((widget) => widget.name === 'ai_toolkit_note')
      const sockets = (node.inputs ?? []).filter((input) => !input.widget)
      return {
        size: [...node.size],
        widgets: (node.widgets ?? []).filter(shown).map((widget) => widget.name),
        sockets: sockets.map((input) => input.name),
        text: html?.innerText ?? null,
        shown: Object.fromEntries((node.widgets ?? []).map((w) => [w.name, [w._displayValue, w.label]])),
        lists: Object.fromEntries(
          (node.widgets ?? [])
            .filter((widget) => Array.isArray(widget.options?.values))
            .map((widget) => [widget.name, [...widget.options.values]])
        ),
        note: note && shown(note) ? [note.element.dataset.kind, note.element.textContent] : null,
        note_on_page: Boolean(note?.element.getClientRects().length),
        values: saved.widgets_values,
        links: (saved.inputs ?? []).map((input) => [input.name, input.link != null, 'widget' in input]),
        asked: prompt[node.id]?.inputs
      }
    }
    const ours = window.app.graph.nodes.filter((node) => /AIToolkit/.test(node.type))
    return Object.fromEntries(ours.map((node) => [node.type, one(node)]))
  })

/** Chooses from a list, or sets a switch, as a user does. */
async function choose(page, type, name, value) {
  const found = await page.evaluate(
    ([type, name]) => {
      const { canvas, graph } = window.app
      const node = graph.nodes.find((one) => one.type === type)
      const widget = node.widgets.find((one) => one.name === name)
      const place = canvas.canvas.getBoundingClientRect()
      const [x, y] = canvas.ds.convertOffsetToCanvas([
        node.pos[0] + node.size[0] / 2,
        node.pos[1] + widget.y + 10
      ])
      return { id: node.id, label: widget.label || name, x: place.x + x, y: place.y + y, kind: widget.type }
    },
    [type, name]
  )
  if (options.nodes2) await chooseInHtml(page, found, value)
  else {
    await page.mouse.click(found.x, found.y)
    if (found.kind === 'combo') {
      await page.locator('.litemenu-entry', { hasText: new RegExp(`^\\s*${escaped(value)}\\s*$`) }).first().click()
    }
  }
  await page.waitForTimeout(700)
}

async function chooseInHtml(page, { id, label, kind }, value) {
  const row = page.locator(`[data-node-id="${id}"] .lg-node-widget`, { hasText: label }).first()
  if (kind !== 'combo') return row.getByRole('switch').click()
  await row.getByRole('combobox').first().click()
  await page.waitForTimeout(300)
  const search = page.locator('[data-testid=widget-select-default-search-input], .p-select-filter').first()
  if (await search.isVisible()) await search.fill(value) // long lists hold what is in view only
  await page.getByRole('option', { name: value, exact: true }).click()
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

/** Gives widgets values as if they had been typed. */
const type = (page, values) =>
  page.evaluate((values) => {
    for (const [type, name, value] of values) {
      const node = window.app.graph.nodes.find((one) => one.type === type)
      const widget = node.widgets.find((one) => one.name === name)
      widget.value = value
      widget.callback?.(value)
    }
  }, values)

/** The graph as it is saved, in a file. */
async function save(page) {
  const saved = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()))
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'graph-')), 'saved.json')
  fs.writeFileSync(file, saved)
  return file
}

/** Opens a graph on a page that knows nothing of it yet. */
async function reopen(page, file) {
  await openEditor(page, url)
  await openFile(page, file)
}

/** Moves the line of the comparison with the pointer, and reports where it was and is. */
async function slide(page) {
  const box = await page.locator('.ai-toolkit-compare > div').first().boundingBox()
  const clip = () =>
    page.evaluate(() => ({
      clip: document.querySelector('.ai-toolkit-compare img:nth-of-type(2)').style.clipPath,
      slider: document.querySelector('.ai-toolkit-compare input[type=range]').value,
      loaded: [...document.querySelectorAll('.ai-toolkit-compare img')].map((image) => image.naturalWidth),
      text: document.querySelector('.ai-toolkit-compare').innerText
    }))
  const loaded = () =>
    page.waitForFunction(() =>
      [...document.querySelectorAll('.ai-toolkit-compare img')].every((image) => image.complete && image.naturalWidth)
    )
  await loaded()
  const before = await clip()
  await page.mouse.move(box.x + box.width * 0.5, box.y + box.height / 2)
  await page.mouse.move(box.x + box.width * 0.25, box.y + box.height / 2, { steps: 5 })
  const after = await clip()
  await page.locator('.ai-toolkit-compare input[type=checkbox]').check()
  await page.locator('.ai-toolkit-compare button').last().click()
  await loaded()
  return { before, after, next: await clip() }
}

async function check(page, report) {
  const step = async (name) => {
    await showGraph(page)
    report[name] = await look(page)
    await page.screenshot({ path: `${options.shots}-${name}.png` })
  }
  await openEditor(page, url)
  await openFile(page, options.graph)
  await showGraph(page)
  await step('opened')
  await choose(page, LOADER, 'model', 'wan22_14b_t2v')
  await step('video')
  await choose(page, LOADER, 'model', 'qwen_image_edit_plus')
  await step('edit')
  await type(page, [
    [SAMPLE, 'num_frames', 41],
    [SAMPLE, 'negative_prompt', 'blurred'],
    [SAMPLE, 'control_index', 0],
    [SAMPLE, 'steps', 2],
    [LORA, 'multiplier', options.nodes2 ? 0.8 : 0.9] // not yet in the server's cache
  ])
  await choose(page, LOADER, 'model', 'flux')
  await step('back')
  const saved = await save(page)
  await reopen(page, saved)
  await step('reopened')
  report.finished = await run(page)
  await page.waitForTimeout(1500)
  await step('ran')
  await choose(page, LORA, 'show_all_files', true)
  await step('all_files')
  await choose(page, LORA, 'lora_name', 'sd15.safetensors')
  report.failed_run = await run(page)
  await page.waitForTimeout(500)
  await page.keyboard.press('Escape')
  await step('failed')
  await reopen(page, await save(page))
  await step('reopened_all_files')
  await openFile(page, options.job)
  report.compared_run = await run(page)
  await page.locator('.ai-toolkit-compare').waitFor({ state: 'visible' })
  await step('compared')
  report.slide = await slide(page)
  await page.screenshot({ path: `${options.shots}-slid.png` })
  report.compare_saved = (await look(page))[COMPARE]
  await page.route('**/extensions/ai-toolkit-inference/**', (route) => route.abort())
  await reopen(page, saved)
  await step('without_script')
  report.without_script_run = await run(page)
}

const report = { page_errors: [], failure: null }
const browser = await launch()
try {
  const settings = { 'Comfy.VueNodes.Enabled': options.nodes2 }
  const page = await openPage(browser, url, { errors: report.page_errors, timeout, settings })
  try {
    await check(page, report)
    const own = ownErrors(report.page_errors)
    if (own.length) throw new Error(`errors in the pack's scripts: ${own}`)
  } catch (error) {
    report.failure = error.stack
    process.exitCode = 1
    await page.screenshot({ path: `${options.shots}-failure.png` })
  }
} finally {
  await browser.close()
}
console.log(JSON.stringify(report))
