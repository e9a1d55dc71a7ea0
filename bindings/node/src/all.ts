// All that the package exports, as one object: what dist/index.mjs takes its names from.
import * as all from './index.js';

export { all };
