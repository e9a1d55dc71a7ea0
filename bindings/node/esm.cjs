// Behind the compiler: dist/index.mjs names what it exports. `export *` of a CommonJS module would
// have every `import` of the package read its files a second time, for their names.
const { writeFileSync } = require('node:fs');
const { join } = require('node:path');

const names = Object.keys(require('./dist/index.js'));
writeFileSync(join(__dirname, 'dist', 'index.mjs'), `import { all } from './all.js';
export const {
${names.map((name) => `  ${name},\n`).join('')}} = all;
`);
