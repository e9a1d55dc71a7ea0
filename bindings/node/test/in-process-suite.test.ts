// All that is said of streams and models holds for the runtime inside this process, too.
process.env['KR_SERVE_TEST_TRANSPORT'] = 'in-process';
require('./streams.test.js');
require('./models.test.js');
require('./lessons.test.js');
