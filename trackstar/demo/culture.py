"""Books, paintings and music with the people who made them, as plain tables: one row a line, cells between bars."""

# book or play | author
BOOKS = """
A Brief History of Time | Stephen Hawking
A Doll's House | Henrik Ibsen
A Tale of Two Cities | Charles Dickens
Animal Farm | George Orwell
Anna Karenina | Leo Tolstoy
Brave New World | Aldous Huxley
Candide | Voltaire
Catch-22 | Joseph Heller
Crime and Punishment | Fyodor Dostoevsky
David Copperfield | Charles Dickens
Dead Souls | Nikolai Gogol
Doctor Zhivago | Boris Pasternak
Don Quixote | Miguel de Cervantes
Dracula | Bram Stoker
Dune | Frank Herbert
Emma | Jane Austen
Fahrenheit 451 | Ray Bradbury
Faust | Johann Wolfgang von Goethe
Foundation | Isaac Asimov
Frankenstein | Mary Shelley
Gone with the Wind | Margaret Mitchell
Gulliver's Travels | Jonathan Swift
Hamlet | William Shakespeare
Heart of Darkness | Joseph Conrad
Ivanhoe | Walter Scott
Jane Eyre | Charlotte Brontë
Les Misérables | Victor Hugo
Lolita | Vladimir Nabokov
Lord of the Flies | William Golding
Macbeth | William Shakespeare
Madame Bovary | Gustave Flaubert
Middlemarch | George Eliot
Moby-Dick | Herman Melville
Mrs Dalloway | Virginia Woolf
Norwegian Wood | Haruki Murakami
On the Origin of Species | Charles Darwin
One Hundred Years of Solitude | Gabriel García Márquez
Pippi Longstocking | Astrid Lindgren
Pride and Prejudice | Jane Austen
Pygmalion | George Bernard Shaw
Robinson Crusoe | Daniel Defoe
Silent Spring | Rachel Carson
Steppenwolf | Hermann Hesse
The Catcher in the Rye | J. D. Salinger
The Divine Comedy | Dante Alighieri
The Great Gatsby | F. Scott Fitzgerald
The Handmaid's Tale | Margaret Atwood
The Hobbit | J. R. R. Tolkien
The House of the Spirits | Isabel Allende
The Jungle Book | Rudyard Kipling
The Leopard | Giuseppe Tomasi di Lampedusa
The Little Prince | Antoine de Saint-Exupéry
The Magic Mountain | Thomas Mann
The Name of the Rose | Umberto Eco
The Old Man and the Sea | Ernest Hemingway
The Prince | Niccolò Machiavelli
The Scarlet Letter | Nathaniel Hawthorne
The Stranger | Albert Camus
The Three Musketeers | Alexandre Dumas
The Time Machine | H. G. Wells
The Tin Drum | Günter Grass
The Trial | Franz Kafka
Things Fall Apart | Chinua Achebe
To Kill a Mockingbird | Harper Lee
Treasure Island | Robert Louis Stevenson
Ulysses | James Joyce
Waiting for Godot | Samuel Beckett
Walden | Henry David Thoreau
War and Peace | Leo Tolstoy
Wuthering Heights | Emily Brontë
"""

# painting | painter
PAINTINGS = """
American Gothic | Grant Wood
Bal du moulin de la Galette | Pierre-Auguste Renoir
Girl with a Pearl Earring | Johannes Vermeer
Guernica | Pablo Picasso
Impression, Sunrise | Claude Monet
Las Meninas | Diego Velázquez
Liberty Leading the People | Eugène Delacroix
Nighthawks | Edward Hopper
Primavera | Sandro Botticelli
The Ambassadors | Hans Holbein
The Anatomy Lesson of Dr. Nicolaes Tulp | Rembrandt
The Arnolfini Portrait | Jan van Eyck
The Birth of Venus | Sandro Botticelli
The Garden of Earthly Delights | Hieronymus Bosch
The Hay Wain | John Constable
The Kiss | Gustav Klimt
The Last Supper | Leonardo da Vinci
The Mona Lisa | Leonardo da Vinci
The Night Watch | Rembrandt
The Persistence of Memory | Salvador Dalí
The Raft of the Medusa | Théodore Géricault
The School of Athens | Raphael
The Scream | Edvard Munch
The Starry Night | Vincent van Gogh
The Third of May 1808 | Francisco Goya
Wanderer above the Sea of Fog | Caspar David Friedrich
Water Lilies | Claude Monet
"""

# opera, ballet or concert work | composer
MUSIC = """
Aida | Giuseppe Verdi
Appalachian Spring | Aaron Copland
Boléro | Maurice Ravel
Carmen | Georges Bizet
Carmina Burana | Carl Orff
Clair de lune | Claude Debussy
Don Giovanni | Wolfgang Amadeus Mozart
Eugene Onegin | Pyotr Tchaikovsky
Fidelio | Ludwig van Beethoven
Finlandia | Jean Sibelius
Für Elise | Ludwig van Beethoven
La bohème | Giacomo Puccini
La traviata | Giuseppe Verdi
Messiah | George Frideric Handel
Parsifal | Richard Wagner
Peer Gynt | Edvard Grieg
Peter and the Wolf | Sergei Prokofiev
Pictures at an Exhibition | Modest Mussorgsky
Rhapsody in Blue | George Gershwin
Salome | Richard Strauss
Scheherazade | Nikolai Rimsky-Korsakov
Swan Lake | Pyotr Tchaikovsky
The Barber of Seville | Gioachino Rossini
The Blue Danube | Johann Strauss
The Brandenburg Concertos | Johann Sebastian Bach
The Creation | Joseph Haydn
The Four Seasons | Antonio Vivaldi
The Magic Flute | Wolfgang Amadeus Mozart
The Nutcracker | Pyotr Tchaikovsky
The Planets | Gustav Holst
The Rite of Spring | Igor Stravinsky
Tosca | Giacomo Puccini
Turandot | Giacomo Puccini
"""
