// Drives ComfyUI's real page in a headless Chromium: open a workflow, press Run, see the result.
//
//   node browser_check.mjs URL --shot FILE.png (--drop FILE | --template NAME --source PACK)
//        [--show TYPE,TYPE] [--play] [--no-run] [--timeout SECONDS]
//
// --drop drops a file on the canvas as a user does; --template opens a pack's template by its address.
// --show: node types that have to display a picture or a video after the run.
// --play: the videos are played to their end, and what came out of them is reported.
// Prints one JSON report. Exit 0 only if every node type is known and the run ended well.
// CHROMIUM is the browser to start.
import fs from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { chromium } from 'playwright-core'

const MIME = {
  '.json': 'application/json',
  '.png': 'image/png',
  '.webp': 'image/webp',
  '.mp4': 'video/mp4',
  '.webm': 'video/webm'
}
const ENDS = ['execution_success', 'execution_error', 'execution_interrupted']
// Dialogs of a first visit that would cover the canvas.
const SETTINGS = {
  'Comfy.TutorialCompleted': true,
  'Comfy.UseNewMenu': 'Top',
  'Comfy.Workflow.ShowMissingModelsWarning': false,
  'Comfy.Notification.ShowVersionUpdates': false
}

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shot: { type: 'string' },
    drop: { type: 'string' },
    template: { type: 'string' },
    source: { type: 'string' },
    show: { type: 'string', default: '' },
    play: { type: 'boolean', default: false },
    'no-run': { type: 'boolean', default: false },
    timeout: { type: 'string', default: '120' }
  }
})
const url = positionals[0]
const timeout = Number(options.timeout) * 1000
if (!url || !options.shot || !(options.drop || (options.template && options.source))) {
  throw new Error('usage: browser_check.mjs URL --shot FILE (--drop FILE | --template NAME --source PACK)')
}

async function openPage(browser, report) {
  const context = await browser.newContext({ viewport: { width: 1600, height: 950 } })
  const origin = new URL(url).origin
  await context.route('**/*', (route) => {
    const local = [origin, 'data:', 'blob:'].some((start) => route.request().url().startsWith(start))
    return local ? route.continue() : route.abort()
  })
  await context.request.post(`${origin}/settings`, { data: SETTINGS })
  const page = await context.newPage()
  page.setDefaultTimeout(timeout)
  page.on('pageerror', (error) => report.page_errors.push(String(error.stack ?? error)))
  return page
}

async function openWorkflow(page) {
  const query = options.template
    ? `?${new URLSearchParams({ template: options.template, source: options.source })}`
    : ''
  await page.goto(url + '/' + query, { waitUntil: 'domcontentloaded' })
  await page.locator('#graph-canvas').waitFor({ state: 'visible' })
  await page.waitForFunction(
    () => window.app?.graph && Object.keys(window.LiteGraph.registered_node_types).length > 100
  )
  if (options.drop) {
    await settled(page)
    await page.evaluate(() => window.app.graph.clear())
    await dropFile(page, options.drop)
  }
  await page.waitForFunction(() => window.app.graph.nodes.length > 0)
  await settled(page)
}

// The start page loads its own workflow some time after the canvas is there.
async function settled(page) {
  let before = ''
  for (;;) {
    const now = await page.evaluate(() => JSON.stringify(window.app.graph.nodes.map((n) => n.id)))
    if (now === before) return
    before = now
    await page.waitForTimeout(1000)
  }
}

async function dropFile(page, file) {
  const type = MIME[path.extname(file)]
  const content = { data: fs.readFileSync(file).toString('base64'), name: path.basename(file), type }
  await page.evaluate(({ data, name, type }) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type }))
    const canvas = document.querySelector('#graph-canvas')
    const { x, y, width, height } = canvas.getBoundingClientRect()
    const place = { clientX: x + width / 2, clientY: y + height / 2 }
    for (const event of ['dragenter', 'dragover', 'drop']) {
      const init = { bubbles: true, cancelable: true, dataTransfer, ...place }
      canvas.dispatchEvent(new DragEvent(event, init))
    }
  }, content)
}

const graphState = (page) =>
  page.evaluate(() => {
    const nodes = window.app.graph.nodes
    const known = window.LiteGraph.registered_node_types
    const lists = nodes.flatMap((node) =>
      (node.widgets ?? [])
        .filter((w) => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
        .map((w) => `${node.type}.${w.name} = ${w.value}`)
    )
    return {
      nodes: nodes.map((node) => node.type),
      links: Object.keys(window.app.graph.links).length,
      unknown: nodes.map((node) => node.type).filter((type) => !(type in known)),
      not_in_list: lists,
      dialogs: [...document.querySelectorAll('[role="dialog"]')].map((d) => d.innerText.slice(0, 500))
    }
  })

async function showGraph(page) {
  await page.keyboard.press('Escape')
  await page.evaluate(() => {
    const { canvas, graph } = window.app
    canvas.selectItems(graph.nodes)
    canvas.fitViewToSelectionAnimated({ duration: 1 })
  })
  await page.waitForTimeout(500)
  await page.evaluate(() => {
    window.app.canvas.deselectAll()
    window.app.canvas.setDirty(true, true)
  })
}

async function run(page) {
  await page.evaluate(
    ([ends]) => {
      window.seen = { counts: {}, end: null, error: null, outputs: {} }
      const kinds = ['execution_cached', 'executing', 'progress', 'b_preview', 'executed', ...ends]
      for (const kind of kinds) {
        window.app.api.addEventListener(kind, ({ detail }) => {
          window.seen.counts[kind] = (window.seen.counts[kind] ?? 0) + 1
          if (kind === 'executed') window.seen.outputs[detail.node] = detail.output
          if (kind === 'execution_error') window.seen.error = detail.exception_message
          if (ends.includes(kind)) window.seen.end = kind
        })
      }
    },
    [ENDS]
  )
  await page.getByRole('button', { name: /^Run\b/ }).first().click()
  await page.waitForFunction(
    () => window.seen.end || Object.keys(window.app.lastNodeErrors ?? {}).length
  )
  return page.evaluate(() => ({ ...window.seen, node_errors: window.app.lastNodeErrors }))
}

// What each node displays: loaded pictures with their sizes, and videos.
const displayed = (page) =>
  page.evaluate(() =>
    window.app.graph.nodes.map((node) => ({
      type: node.type,
      pictures: (node.imgs ?? []).filter((i) => i.complete).map((i) => [i.naturalWidth, i.naturalHeight]),
      videos: node.videoContainer ? node.videoContainer.querySelectorAll('video').length : 0
    }))
  )

async function waitForDisplay(page, types) {
  const end = Date.now() + 15000
  for (;;) {
    const nodes = await displayed(page)
    const visible = (type) =>
      nodes.some((n) => n.type === type && (n.videos || n.pictures.some(([width]) => width > 0)))
    const lacking = types.filter((type) => !visible(type))
    if (!lacking.length) return nodes
    if (Date.now() > end) throw new Error(`nothing is displayed in ${lacking}`)
    await page.waitForTimeout(200)
  }
}

// Every displayed video, played from its start to its end: what the browser decoded, and the colour in
// the middle of its last frame.
const played = (page) =>
  page.evaluate(async () => {
    const play = async ({ type, videoContainer }) => {
      const video = document.createElement('video')
      const events = []
      for (const kind of ['loadeddata', 'ended', 'error']) {
        video.addEventListener(kind, () => events.push(kind))
      }
      video.muted = true
      video.src = videoContainer.querySelector('video').currentSrc
      await video.play().catch((error) => events.push(String(error)))
      const end = Date.now() + 20000
      while (!events.includes('ended') && !video.error && Date.now() < end) {
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
      const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
      const middle = [video.videoWidth / 2, video.videoHeight / 2, 1, 1]
      const context = canvas.getContext('2d')
      context.drawImage(video, ...middle, 0, 0, 1, 1)
      return {
        type,
        events,
        error: video.error?.message ?? null,
        size: [video.videoWidth, video.videoHeight],
        duration: video.duration,
        time: video.currentTime,
        frames: video.getVideoPlaybackQuality().totalVideoFrames,
        sound: video.webkitAudioDecodedByteCount,
        colour: [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
      }
    }
    const videos = window.app.graph.nodes.filter((node) => node.videoContainer?.querySelector('video'))
    const reports = []
    for (const node of videos) reports.push(await play(node))
    return reports
  })

async function check(page, report) {
  await openWorkflow(page)
  Object.assign(report, await graphState(page))
  await showGraph(page)
  if (report.unknown.length) throw new Error(`unknown node types: ${report.unknown}`)
  if (!options['no-run']) {
    report.run = await run(page)
    if (report.run.end !== 'execution_success') {
      const reason = report.run.error ?? JSON.stringify(report.run.node_errors)
      throw new Error(`the run ended in ${report.run.end ?? 'a refusal'}: ${reason}`)
    }
    report.displayed = await waitForDisplay(page, options.show.split(',').filter(Boolean))
    if (options.play) report.played = await played(page)
    await showGraph(page)
  }
  const own = report.page_errors.filter((error) => /\/extensions\/(?!core\/)/.test(error))
  if (own.length) throw new Error(`errors in the pack's scripts: ${own}`)
}

const report = { page_errors: [], failure: null }
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync']
    .concat(['--disable-background-networking', '--disable-component-update'])
    .concat(['--use-angle=swiftshader', '--enable-unsafe-swiftshader'])
})
try {
  const page = await openPage(browser, report)
  try {
    await check(page, report)
  } catch (error) {
    report.failure = error.message
    process.exitCode = 1
  }
  await page.screenshot({ path: options.shot })
} finally {
  await browser.close()
}
console.log(JSON.stringify(report))
