// How exactly a model's pictures were found to be the trainer's, on the node that chooses it.
import { clearNotes, setNote } from './notes.js'

/**
 * @param {object} node
 * @param {import('./models.js').Model | undefined} model
 */
export function showBadge(node, model) {
  clearNotes(node, 'exact', 'measured')
  if (!model) return
  const { exact, pictures, most } = model.measured ?? { exact: 0, pictures: 0, most: 0 }
  if (!pictures) {
    setNote(node, 'measured', 'not compared with the trainer yet')
  } else if (exact === pictures) {
    setNote(node, 'exact', `exact: all ${pictures} test pictures are the trainer's, byte for byte`)
  } else {
    const others = `the others are up to ${most} of 255 levels off`
    setNote(node, 'measured', `measured: ${exact} of ${pictures} test pictures are the trainer's; ${others}`)
  }
}
