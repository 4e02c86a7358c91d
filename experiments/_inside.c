/*
 * A jar that counts beans, written to be read by a network.
 *
 * Every kind of bean has a shelf; a shelf that is full says so once,
 * and whoever asks for more than there is gets -ENOENT.
 */
#include <linux/jar.h>
#include <linux/slab.h>

#define JAR_SHELVES	8
#define jar_full(jar)	((jar)->used >= JAR_SHELVES)

struct shelf {
	const char *label;	/* "red", "black", ... */
	unsigned long beans;
	bool told;
};

static struct shelf *jar_find(struct jar *jar, const char *label)
{
	int i;

	for (i = 0; i < jar->used; i++) {
		if (!strcmp(jar->shelves[i].label, label))
			return &jar->shelves[i];
	}
	return NULL;
}

static int jar_add(struct jar *jar, const char *label, unsigned long beans)
{
	struct shelf *shelf = jar_find(jar, label);

	if (!shelf) {
		if (jar_full(jar))
			return -ENOSPC;
		shelf = &jar->shelves[jar->used++];
		shelf->label = kstrdup(label, GFP_KERNEL);
		if (!shelf->label) {
			jar->used--;
			pr_err("jar: no memory for the label \"%s\"\n", label);
			return -ENOMEM;
		}
	}
	/* Never let the count wrap around, however many beans come. */
	if (shelf->beans + beans < shelf->beans) {
		if (!shelf->told)
			pr_warn("jar: the shelf of %s is full (%lu beans)\n",
				label, shelf->beans);
		shelf->told = true;
		return -EOVERFLOW;
	}
	shelf->beans += beans;
	return 0;
}

/* Take beans from a shelf, if it has enough. */
static int jar_take(struct shelf *shelf, int n)
{
	if (shelf->beans < n) {
		/* Not enough beans. */
		pr_warn("jar: only %lu", shelf->beans);
		return -ENOENT;
	}
	shelf->beans -= n;
	return 0;
}

static ssize_t jar_show(struct device *dev, struct device_attribute *attr,
			char *buf)
{
	struct jar *jar = dev_get_drvdata(dev);
	ssize_t len = 0;
	int i;

	mutex_lock(&jar->lock);
	for (i = 0; i < jar->used; i++) {
		switch (jar->shelves[i].beans) {
		case 0:
			len += sysfs_emit_at(buf, len, "%s: none left\n",
					     jar->shelves[i].label);
			break;
		case 1:
			/* One bean is not "beans". */
			len += sysfs_emit_at(buf, len, "%s: one bean\n",
					     jar->shelves[i].label);
			break;
		default:
			len += sysfs_emit_at(buf, len, "%s: %lu beans\n",
					     jar->shelves[i].label,
					     jar->shelves[i].beans);
		}
	}
	mutex_unlock(&jar->lock);
	return len;
}
